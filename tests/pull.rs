//! `hymba pull` and model names, with a hub that works and with one that fails.

mod common;
#[cfg(target_os = "linux")]
#[path = "pull/disk.rs"]
mod disk;
#[path = "common/hub.rs"]
mod hub;
#[path = "pull/official.rs"]
mod official;
#[cfg(unix)]
#[path = "pull/questions.rs"]
mod questions;
#[cfg(unix)]
#[path = "common/terminal.rs"]
mod terminal;
#[path = "pull/tls.rs"]
mod tls;

use std::{
    fs::{self, File, FileTimes},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use common::{fails, golden, quantize, succeeds, text};
use hub::{Fault, REPO, Side, World, checkpoint, commit};
use hymba::format::gguf::Gguf;
use sha2::{Digest, Sha256};

/// A vocabulary size that makes weights of 20 MB, fetched by four connections in five ranges.
const LARGE: usize = 76_000;
const SMALL: usize = 128;
/// A pull with a fast conversion.
const QUICK: [&str; 5] = ["pull", REPO, "-q", "--type", "f16"];

/// Returns the file names in a folder.
fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that all blobs match the hashes in their names, and that there are no other files.
#[track_caller]
fn assert_blobs(world: &World) {
    let blobs = world.cache().join("blobs");
    for name in names(&blobs) {
        let bytes = fs::read(blobs.join(&name)).unwrap();
        assert!(name.len() == 40 || name.len() == 64, "{name} is left");
        if name.len() == 64 {
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, name);
        }
    }
}

/// Asserts that the installed model equals the result of `quantize` for the same files.
#[track_caller]
fn assert_installed(world: &World, kind: &str, vocab: usize) {
    let installed = Gguf::open(&world.installed(kind)).unwrap();
    let folder = world.dir.path().join("original");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in checkpoint(vocab) {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let converted = world.dir.path().join("converted.gguf");
    quantize(folder.to_str().unwrap(), &converted, &["--type", kind, "--force"]);
    let converted = Gguf::open(&converted).unwrap();
    assert_eq!(installed.tensors.len(), converted.tensors.len());
    for (a, b) in installed.tensors.iter().zip(&converted.tensors) {
        assert!(a.name == b.name && *a.data == *b.data, "{} differs", a.name);
    }
}

#[test]
fn a_model_is_pulled_by_its_name() {
    let world = World::with_model(LARGE);
    let output = world.hymba(["pull", REPO]).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(out.contains("installed a/Tiny-Model:q4") && out.contains("try it: hymba run -m a/Tiny-Model"), "{out}");
    assert!(
        err.contains("license of a/Tiny-Model: tiny-license (") && err.contains("/a/Tiny-Model/blob/main/LICENSE"),
        "{err}"
    );

    // The files needed for conversion, card and license, in the layout of huggingface_hub's cache.
    let commit = fs::read_to_string(world.cache().join("refs/main")).unwrap();
    let snapshot = world.cache().join("snapshots").join(&commit);
    assert_eq!(names(&snapshot), ["LICENSE", "README.md", "config.json", "model.safetensors"]);
    assert!(fs::read_link(snapshot.join("config.json")).unwrap().starts_with("../../blobs"));
    assert_blobs(&world);
    let requests = world.hub.requests();
    assert!(!requests.iter().any(|r| r.path.contains("pytorch") || r.path.contains("modeling")));
    let data = requests.iter().filter(|r| r.is_get_of_data());
    assert!(data.clone().count() > 4 && data.clone().all(|r| r.header("range").is_some()));
    assert!(data.clone().any(|r| r.header("if-range").is_some()));

    assert_installed(&world, "q4", LARGE);
    let metadata = Gguf::open(&world.installed("q4")).unwrap().metadata;
    for (key, value) in
        [("general.name", "Tiny-Model"), ("general.license", "other"), ("general.license.name", "tiny-license")]
    {
        assert_eq!(metadata.string(key), Some(value));
    }
    assert!(metadata.string("general.license.link").unwrap().ends_with("/LICENSE"));
    assert!(metadata.string("general.source.url").unwrap().ends_with(&commit));

    // The same again does nothing, another type downloads nothing.
    world.hub.forget_requests();
    let again = world.hymba(["pull", REPO]).output().unwrap();
    assert!(text(&again.stderr).contains("is installed and up to date"));
    let second = world.hymba(["pull", "a/Tiny-Model:q8_0"]).output().unwrap();
    assert!(second.status.success() && !text(&second.stderr).contains("license"));
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()));
    assert_installed(&world, "q8_0", LARGE);
}

#[test]
fn model_names_are_accepted_wherever_files_are() {
    let world = World::with_model(SMALL);
    succeeds(&mut world.hymba(["pull", REPO, "-q", "--type", "f32"]));
    let path = succeeds(&mut world.hymba(["models", "path", "tiny-model"]));
    assert_eq!(Path::new(path.trim_end()), world.installed("f32"));
    let logits = |model: &str, out: &str| {
        let out = world.dir.path().join(out);
        succeeds(world.hymba(["eval", "logits", "--ids", "1,2,3", "-m", model, "-o"]).arg(&out));
        fs::read(out).unwrap()
    };
    let by_path = logits(path.trim_end(), "a");
    for name in [REPO, "a/Tiny-Model:f32", "tiny", "model:f32"] {
        assert_eq!(logits(name, &name.replace(['/', ':'], "_")), by_path);
    }
    assert!(succeeds(&mut world.hymba(["inspect", "tiny"])).contains("f32"));
    let variable = world
        .hymba(["eval", "logits", "--ids", "1", "--force", "-o"])
        .arg(world.dir.path().join("a"))
        .env("HYMBA_MODEL", "tiny")
        .output();
    assert!(variable.unwrap().status.success());

    let long_ago = FileTimes::new().set_accessed(SystemTime::now() - Duration::from_secs(3 * 86_400));
    File::open(world.installed("f32")).unwrap().set_times(long_ago).unwrap();
    for used in ["3 days ago", "now"] {
        let list = succeeds(&mut world.hymba(["models"]));
        let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!((row[0], row[1], row[4], row[5..].join(" ")), (REPO, "f32", "248", used.into()), "{list}");
        succeeds(&mut world.hymba(["inspect", "tiny"]));
    }
    fails(
        &mut world.hymba(["run", "-m", "a/Other", "x"]),
        1,
        &["no such file or installed model", "`hymba pull a/Other`"],
    );
    fails(&mut world.hymba(["run", "-m", "other", "x"]), 1, &["no such file or installed model"]);
    succeeds(&mut world.hymba(["pull", "a/Tiny-Model:q8_0", "-q"]));
    fails(
        &mut world.hymba(["run", "-m", "tiny", "x"]),
        1,
        &["is ambiguous; use one of a/Tiny-Model:f32 or a/Tiny-Model:q8_0"],
    );
    fails(&mut world.hymba(["models", "rm", "tiny"]), 1, &["is ambiguous; use one of"]);
    // A file with this name has precedence.
    fs::copy(world.installed("f32"), world.dir.path().join("tiny")).unwrap();
    assert!(succeeds(world.hymba(["inspect", "tiny"]).current_dir(&world.dir)).contains("f32"));
    succeeds(&mut world.hymba(["models", "rm", "tiny:f32", "tiny:q8_0"]));
    assert!(names(world.dir.path().join("models")).is_empty());
    let empty = world.hymba(["models"]).output().unwrap();
    assert!(empty.stdout.is_empty() && text(&empty.stderr).contains("no models are installed"));
}

#[test]
fn a_gguf_file_is_installed_unchanged() {
    let world = World::new();
    let file = world.dir.path().join("made.gguf");
    quantize(&golden("tiny-a"), &file, &["--type", "q4_0"]);
    let bytes = fs::read(&file).unwrap();
    let files = [("Tiny-q4_0.gguf", &bytes[..]), ("Tiny-q8_0.gguf", b"GGUF but no model"), ("README.md", b"# Hi")];
    commit(&world.hub, REPO, &files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    succeeds(&mut world.hymba(["pull", "a/Tiny-Model:q4_0", "--keep-original", "no"]));
    assert!(fs::read(world.installed("q4_0")).unwrap() == bytes);
    assert!(!world.cache().exists());
    fails(&mut world.hymba(["pull", "a/Tiny-Model:q8_0", "-q"]), 1, &["was not installed"]);
    fails(&mut world.hymba(["pull", "a/Tiny-Model:q5"]), 1, &["has no q5, but q4_0, q8_0"]);
    assert!(!world.installed("q8_0").exists());
}

#[test]
fn a_dry_run_writes_nothing() {
    let world = World::with_model(LARGE);
    let output = succeeds(&mut world.hymba(["pull", REPO, "--dry-run"]));
    for part in [
        "license: tiny-license",
        "model.safetensors (2",
        "to download: 2",
        "to convert: q4",
        "on disk: ",
        "in memory: ",
    ] {
        assert!(output.contains(part), "{part} is missing in {output}");
    }
    assert!(names(&world.dir).is_empty());
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()));
}

#[test]
fn pull_errors_are_one_sentence() {
    let world = World::with_model(SMALL);
    let pull = |args: &[&str]| world.hymba(["pull"].iter().chain(args));
    fails(&mut pull(&["a/b/c"]), 2, &["is not a model name"]);
    fails(&mut pull(&["a/b:q4", "--type", "q5"]), 2, &["different types"]);
    fails(&mut pull(&["a/Missing"]), 1, &["a/Missing was not found at http://127.0.0.1", "HF_TOKEN"]);
    fails(&mut pull(&[REPO, "--revision", "v9"]), 1, &["has no revision `v9`"]);
    fails(&mut pull(&[REPO, "--type", "q3"]), 2, &["unknown type `q3`"]);
    fails(pull(&[REPO]).env("HF_HUB_OFFLINE", "1"), 1, &["HF_HUB_OFFLINE", "a/Tiny-Model at main is not in the cache"]);
    fails(pull(&[REPO]).env("HF_ENDPOINT", "ftp://a"), 1, &["HF_ENDPOINT is `ftp://a`"]);
    world.hub.on(|_| Fault::Header("X-Repo-Commit", None));
    fails(&mut pull(&[REPO, "-q"]), 1, &["has no commit"]);
    world.hub.on(|_| Fault::Header("X-Linked-ETag", Some("\"?\"".into())));
    fails(&mut pull(&[REPO, "-q"]), 1, &["no hash"]);
    world.hub.on(|_| Fault::Header("X-Linked-Size", Some("1".into())));
    fails(&mut pull(&[REPO, "-q"]), 1, &["two sizes"]);
    world.hub.on(|_| Fault::None);
    let llama = br#"{"model_type": "llama", "hidden_size": 64}"#;
    let files = [("config.json", &llama[..], false), ("model.safetensors", &b"not wanted"[..], true)];
    world.hub.commit("a/Llama", "main", &files);
    let other = ["a/Llama/config.json", "a model of type `llama`; only `hymba` is supported"];
    fails(&mut pull(&["a/Llama"]), 1, &other);
    world.hub.commit("a/Data", "main", &[("data.csv", b"1,2", false)]);
    fails(&mut pull(&["a/Data"]), 1, &["a/Data contains neither a checkpoint", "nor a GGUF file"]);
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("http://{nobody}: no connection (connection refused); check the network and HF_ENDPOINT");
    fails(pull(&[REPO]).env("HF_ENDPOINT", format!("http://{nobody}")), 1, &[&refused]);
    assert!(!world.dir.path().join("models").exists());
}

#[test]
fn the_token_is_sent_only_to_the_hub() {
    let world = World::with_model(SMALL);
    world.hub.gate(REPO, "hf_right");
    let page = format!("{}/a/Tiny-Model", world.hub.endpoint());
    fails(&mut world.hymba(QUICK), 1, &["requires accepting its license: do so at", &page, "HF_TOKEN"]);
    fails(world.hymba(QUICK).env("HF_TOKEN", "hf_wrong"), 1, &["accepting its license", &page]);
    world.hub.forget_requests();
    let cut = AtomicBool::new(false);
    world.hub.on(
        move |r| if r.is_get_of_data() && !cut.swap(true, Ordering::Relaxed) { Fault::Cut(1000) } else { Fault::None },
    );
    let output = world.hymba(&QUICK[..2]).env("HF_TOKEN", "hf_right").output().unwrap();
    let output = text(&output.stdout) + &text(&output.stderr);
    assert!(!output.contains("hf_right") && !output.contains("secret-of-the-cdn"), "{output}");
    world.hub.on(|_| Fault::None);
    fs::create_dir_all(world.dir.path().join("hf")).unwrap();
    fs::write(world.dir.path().join("hf/token"), "hf_right\n").unwrap();
    succeeds(&mut world.hymba(QUICK));
    let requests = world.hub.requests();
    assert!(requests.iter().any(|r| r.side == Side::Cdn));
    for request in requests {
        let token = request.header("authorization");
        assert_eq!(token, (request.side == Side::Hub).then_some("Bearer hf_right"), "{request:?}");
    }
}

/// Returns the fault of the n-th answer.
type Faults = Box<dyn Fn(usize) -> Fault + Send + Sync>;

/// Temporary faults do not end a pull, and received data is not downloaded again.
#[test]
fn transient_errors_are_retried() {
    let cases: [(&str, Faults); 6] = [
        ("cut", Box::new(|n| if n < 8 { Fault::Cut(3_000_000) } else { Fault::None })),
        ("5xx", Box::new(|n| if n % 3 == 0 { Fault::Status(503, vec![]) } else { Fault::None })),
        ("429", Box::new(|n| if n == 2 { Fault::Status(429, vec![("Retry-After", "1".into())]) } else { Fault::None })),
        ("stall", Box::new(|n| if n == 1 { Fault::Stall(2_000_000) } else { Fault::None })),
        ("expired", Box::new(|n| if n == 3 { Fault::Status(403, vec![]) } else { Fault::None })),
        ("tag", Box::new(|n| Fault::Header("ETag", Some(format!("\"{}\"", n % 2))))),
    ];
    for (name, faults) in cases {
        let world = World::with_model(LARGE);
        let size = checkpoint(LARGE)[3].1.len() as u64;
        let count = AtomicUsize::new(0);
        world
            .hub
            .on(move |r| if r.is_get_of_data() { faults(count.fetch_add(1, Ordering::Relaxed)) } else { Fault::None });
        let output = world.hymba(["pull", REPO, "--type", "f16"]).env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_blobs(&world);
        assert!(text(&output.stderr).contains("trying again in"), "{name}");
        let sent = world.hub.sent();
        // An answer with another ETag is discarded, which wastes what was sent before the connection closes.
        assert!(name == "tag" || sent >= size && sent < size + (4 << 20), "{name}: {sent} bytes were sent of {size}");
    }
}

#[test]
fn permanent_errors_end_the_pull() {
    let world = World::with_model(SMALL);
    let retry_later = || Fault::Status(429, vec![("Retry-After", "7200".into())]);
    world.hub.on(move |r| if r.is_get_of_data() { retry_later() } else { Fault::None });
    fails(&mut world.hymba(QUICK), 1, &["model.safetensors", "no requests for 120 minutes"]);
    world.hub.on(|r| if r.is_get_of_data() { Fault::Status(418, vec![]) } else { Fault::None });
    fails(&mut world.hymba(QUICK), 1, &["status 418"]);
}

#[test]
fn servers_without_range_support_work() {
    let world = World::with_model(LARGE);
    world.hub.on(|r| if r.is_get_of_data() { Fault::NoRanges } else { Fault::None });
    succeeds(&mut world.hymba(QUICK));
    assert_blobs(&world);
}

#[test]
fn a_hash_mismatch_installs_nothing() {
    let world = World::with_model(LARGE);
    let bad = Arc::new(AtomicBool::new(true));
    let first = bad.clone();
    world.hub.on(move |r| {
        if r.is_get_of_data() && first.swap(false, Ordering::Relaxed) { Fault::WrongByte } else { Fault::None }
    });
    let error = ["model.safetensors: the download does not match the hub's hash (SHA-256 ", ".hymba-bad"];
    fails(&mut world.hymba(QUICK), 1, &error);
    let blobs = names(world.cache().join("blobs"));
    assert!(!blobs.iter().any(|name| name.len() == 64) && blobs.iter().any(|name| name.ends_with(".hymba-bad")));
    assert!(!world.cache().join("refs/main").exists() && !world.installed("f16").exists());
    succeeds(&mut world.hymba(QUICK));
    assert_installed(&world, "f16", LARGE);

    // Plain files are verified with git's hash, whether they are stored or only read.
    for file in ["LICENSE", "config.json"] {
        let world = World::with_model(SMALL);
        world.hub.on(move |r| if r.method == "GET" && r.path.ends_with(file) { Fault::WrongByte } else { Fault::None });
        fails(&mut world.hymba(QUICK), 1, &[&format!("{file}: the download does not match"), "git blob"]);
    }
}

#[test]
fn files_of_the_wrong_length_are_rejected() {
    let world = World::with_model(SMALL);
    world.hub.on(|r| if r.is_get_of_data() { Fault::Longer(5) } else { Fault::None });
    fails(&mut world.hymba(QUICK), 1, &["bytes of it, but the hub reported"]);
    // A blob of the wrong length, as after a full disk, is downloaded again.
    world.hub.on(|_| Fault::None);
    let blob = world.cache().join("blobs").join({
        let bytes = &checkpoint(SMALL)[3].1;
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    fs::write(&blob, "short").unwrap();
    succeeds(&mut world.hymba(QUICK));
    assert_blobs(&world);
}

#[test]
fn a_branch_that_moves_during_a_pull_mixes_no_files() {
    let world = World::with_model(LARGE);
    let commits = world.dir.path().join("hf/hub/models--a--Tiny-Model/refs/main");
    let world = Arc::new(world);
    let (moved, weak) = (AtomicBool::new(false), Arc::downgrade(&world));
    world.hub.on(move |r| {
        if r.is_get_of_data() && !moved.swap(true, Ordering::Relaxed) {
            let mut files = checkpoint(LARGE);
            files[2].1.push(b' ');
            commit(&weak.upgrade().unwrap().hub, REPO, &files);
        }
        Fault::None
    });
    succeeds(&mut world.hymba(QUICK));
    let first = fs::read_to_string(&commits).unwrap();
    let config = |commit: &str| fs::read(world.cache().join("snapshots").join(commit).join("config.json")).unwrap();
    assert_eq!(config(&first), checkpoint(LARGE)[2].1);
    world.hub.forget_requests();
    succeeds(&mut world.hymba(QUICK));
    let second = fs::read_to_string(&commits).unwrap();
    assert!(first != second && config(&second).ends_with(b" "));
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()), "the weights are the same");
}

#[test]
fn the_revision_flag_pulls_a_tag_or_commit() {
    let world = World::with_model(SMALL);
    let files = checkpoint(SMALL);
    let files: Vec<_> = files[..4].iter().map(|(name, bytes)| (&**name, &bytes[..], name.contains("model"))).collect();
    let commit = world.hub.commit(REPO, "v1.0", &files);
    succeeds(world.hymba(QUICK).args(["--revision", "v1.0"]));
    assert_eq!(fs::read_to_string(world.cache().join("refs/v1.0")).unwrap(), commit);
    assert!(!world.cache().join("refs/main").exists());
    let metadata = Gguf::open(&world.installed("f16")).unwrap().metadata;
    assert!(metadata.string("general.source.url").unwrap().ends_with(&commit));
    let same = world.hymba(["pull", REPO, "--type", "f16", "--revision", &commit]).output().unwrap();
    assert!(text(&same.stderr).contains("is installed and up to date"), "{}", text(&same.stderr));
}

#[test]
fn environment_variables_set_the_folders() {
    let world = World::with_model(SMALL);
    world.hub.gate(REPO, "hf_right");
    let dir = world.dir.path();
    fs::write(dir.join("secret"), "hf_right\n").unwrap();
    let mut pull = world.hymba(QUICK);
    pull.env("HF_HUB_CACHE", dir.join("cache")).env("HF_TOKEN_PATH", dir.join("secret"));
    succeeds(pull.env_remove("HYMBA_MODELS").env("XDG_DATA_HOME", dir.join("data")));
    assert_eq!(names(dir), ["cache", "data", "secret"]);
    assert!(dir.join("cache/models--a--Tiny-Model/refs/main").exists());
    assert!(dir.join("data/hymba/models/a/Tiny-Model-f16.gguf").exists());
    let mut models = world.hymba(["models"]);
    models.env_remove("HYMBA_MODELS").env_remove("XDG_DATA_HOME").env("HOME", dir.join("home"));
    let none = text(&models.output().unwrap().stderr);
    assert!(cfg!(windows) || none.contains(&*dir.join("home/.local/share/hymba/models").to_string_lossy()), "{none}");
}

#[test]
fn a_renamed_repository_is_found() {
    let world = World::with_model(SMALL);
    world.hub.rename(REPO, "b/New-Name");
    succeeds(&mut world.hymba(["pull", REPO, "-q", "--type", "f32"]));
    assert!(world.dir.path().join("models/b/New-Name-f32.gguf").exists());
}

#[test]
fn concurrent_pulls_share_one_download() {
    let world = World::with_model(LARGE);
    let size = checkpoint(LARGE)[3].1.len() as u64;
    world.hub.on(|r| if r.is_get_of_data() { Fault::Slow(Duration::from_millis(5)) } else { Fault::None });
    let mut children: Vec<_> =
        ["f16", "f32"].map(|kind| world.hymba(["pull", REPO, "-q", "--type", kind]).spawn().unwrap()).into();
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    assert!(world.hub.sent() < size + 10_000, "{} bytes were sent of {size}", world.hub.sent());
    assert_installed(&world, "f16", LARGE);
    assert_installed(&world, "f32", LARGE);
}

#[test]
fn incomplete_downloads_of_huggingface_hub_are_resumed() {
    for is_valid in [true, false] {
        let world = World::with_model(LARGE);
        let weights = &checkpoint(LARGE)[3].1;
        let hash: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
        let blobs = world.cache().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        let mut partial = weights[..13_000_000].to_vec();
        partial[12_999_999] ^= u8::from(!is_valid);
        fs::write(blobs.join(format!("{hash}.incomplete")), partial).unwrap();
        succeeds(&mut world.hymba(QUICK));
        assert_blobs(&world);
        let (sent, size) = (world.hub.sent(), weights.len() as u64);
        let expected = if is_valid { size - 13_000_000 } else { 2 * size - 13_000_000 };
        assert!(sent >= expected && sent < expected + 10_000, "{sent} bytes were sent, not {expected}");
    }
}

#[test]
fn the_cache_works_without_symlinks() {
    let world = World::with_model(SMALL);
    let pull =
        |kind: &str| succeeds(world.hymba(["pull", REPO, "-q", "--type", kind]).env("HF_HUB_DISABLE_SYMLINKS", "1"));
    pull("q4");
    let commit = fs::read_to_string(world.cache().join("refs/main")).unwrap();
    let file = world.cache().join("snapshots").join(commit).join("model.safetensors");
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
    world.hub.forget_requests();
    pull("q8_0");
    assert_eq!(
        world.hub.sent(),
        fs::metadata(file.with_file_name("config.json")).unwrap().len(),
        "only config.json is downloaded"
    );
}

#[test]
fn offline_mode_uses_the_cache() {
    let world = World::with_model(SMALL);
    succeeds(&mut world.hymba(QUICK));
    world.hub.forget_requests();
    let offline = |args: &[&str]| {
        let mut command = world.hymba(["pull", REPO].iter().chain(args));
        command.env("HF_HUB_OFFLINE", "1");
        command
    };
    succeeds(&mut offline(&["--type", "q8_0"]));
    assert_installed(&world, "q8_0", SMALL);
    fails(&mut offline(&["--revision", "other"]), 1, &["a/Tiny-Model at other is not in the cache"]);
    assert!(world.hub.requests().is_empty());
    succeeds(&mut world.hymba(["pull", REPO, "-q", "--type", "f32", "--keep-original", "no"]));
    assert!(!world.cache().exists() && world.installed("f32").exists());
}

#[cfg(unix)]
#[test]
fn sigint_ends_a_stalled_pull() {
    let world = World::with_model(LARGE);
    world.hub.on(|r| if r.is_get_of_data() { Fault::Stall(1_500_000) } else { Fault::None });
    let mut child = world.hymba(QUICK).spawn().unwrap();
    while world.hub.sent() < 4_000_000 {
        std::thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.hub.on(|_| Fault::None);
    let before = world.hub.sent();
    succeeds(&mut world.hymba(QUICK));
    let size = checkpoint(LARGE)[3].1.len() as u64;
    assert!(world.hub.sent() - before < size - 3_000_000, "damaged data is downloaded again");
}
