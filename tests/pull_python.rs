//! Compatibility of cache and protocol with Python's `huggingface_hub`, if `HYMBA_HF_PYTHON` names a Python that has it.

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::succeeds;
use hub::{Fault, REPO, World, checkpoint};

const VOCABULARY: usize = 96_000;

/// Returns a command that runs a Python script with the environment of `world`.
fn python(world: &World, script: &str) -> Option<Command> {
    let python = std::env::var("HYMBA_HF_PYTHON").ok()?;
    let mut command = Command::new(python);
    world.set_env(&mut command);
    command.args(["-c", script, REPO]).stdin(Stdio::null());
    command
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    Some(command)
}

fn size() -> u64 {
    checkpoint(VOCABULARY)[3].1.len() as u64
}

/// The test hub is compatible with huggingface_hub.
#[test]
fn huggingface_hub_downloads_from_the_test_hub() {
    let world = World::with_model(VOCABULARY);
    let script = r#"
import os, sys
from huggingface_hub import snapshot_download, hf_hub_download, HfApi
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError
repo = sys.argv[1]
info = HfApi().model_info(repo, files_metadata=True)
assert any(s.lfs and s.size == s.lfs.size for s in info.siblings)
folder = snapshot_download(repo)
for s in info.siblings:
    assert os.path.getsize(os.path.join(folder, s.rfilename)) == s.size, s
assert info.sha in folder
for error, call in [
    (EntryNotFoundError, lambda: hf_hub_download(repo, "missing.json")),
    (RevisionNotFoundError, lambda: hf_hub_download(repo, "config.json", revision="missing")),
    (RepositoryNotFoundError, lambda: hf_hub_download("a/missing", "config.json")),
]:
    try:
        call()
    except error:
        continue
    raise AssertionError(error)
print(folder)
"#;
    let Some(mut python_downloads) = python(&world, script) else { return };
    let folder = succeeds(&mut python_downloads);
    for (name, bytes) in checkpoint(VOCABULARY) {
        assert!(fs::read(format!("{}/{name}", folder.trim_end())).unwrap() == bytes, "{name}");
    }
    // A pull needs no further downloads, offline and online.
    world.hub.forget_requests();
    succeeds(world.hymba(["pull", REPO, "-q"]).env("HF_HUB_OFFLINE", "1"));
    assert!(world.hub.requests().is_empty());
    succeeds(&mut world.hymba(["pull", REPO, "-q", "--type", "q8_0"]));
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()));
    assert!(world.installed("q4").exists() && world.installed("q8_0").exists());

    world.hub.gate(REPO, "hf_right");
    let gated = r#"
import sys
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import GatedRepoError
try:
    hf_hub_download(sys.argv[1], "config.json", token=False, force_download=True)
except (GatedRepoError, ValueError) as e:
    assert isinstance(e, GatedRepoError) or isinstance(e.__cause__, GatedRepoError), e
else:
    raise AssertionError
hf_hub_download(sys.argv[1], "LICENSE", token="hf_right", force_download=True)
"#;
    succeeds(&mut python(&world, gated).unwrap());
}

#[test]
fn huggingface_hub_uses_pulled_files() {
    let world = World::with_model(VOCABULARY);
    let script = r#"
import json, os, sys
from huggingface_hub import snapshot_download, hf_hub_download, scan_cache_dir, try_to_load_from_cache
repo = sys.argv[1]
config = hf_hub_download(repo, "config.json")
assert json.load(open(config))["model_type"] == "hymba"
assert try_to_load_from_cache(repo, "model.safetensors") == hf_hub_download(repo, "model.safetensors", local_files_only=True)
folder = snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"])
assert sorted(os.listdir(folder)) == ["LICENSE", "README.md", "config.json", "model.safetensors"], os.listdir(folder)
cache = scan_cache_dir()
assert not cache.warnings, cache.warnings
[found] = cache.repos
[revision] = found.revisions
assert found.repo_id == repo and revision.refs == {"main"} and found.nb_files == 4
print("good")
"#;
    let Some(mut offline) = python(&world, script) else { return };
    succeeds(&mut world.hymba(["pull", REPO, "-q"]));
    world.hub.forget_requests();
    assert_eq!(succeeds(offline.env("HF_HUB_OFFLINE", "1")), "good\n");
    assert!(world.hub.requests().is_empty());
    // Online, it downloads only what the pull did not need.
    let online = "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1])";
    succeeds(&mut python(&world, online).unwrap());
    let data: Vec<_> = world.hub.requests().into_iter().filter(|r| r.is_get_of_data()).collect();
    assert_eq!(data.len(), 1, "pytorch_model.bin alone: {data:?}");
}

/// A pull resumes an interrupted download of huggingface_hub.
#[cfg(unix)]
#[test]
fn an_interrupted_python_download_is_resumed() {
    let world = World::with_model(VOCABULARY);
    let script =
        "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], 'model.safetensors')";
    let Some(mut download) = python(&world, script) else { return };
    world.hub.on(|r| if r.is_get_of_data() { Fault::Slow(Duration::from_millis(10)) } else { Fault::None });
    let mut child = download.spawn().unwrap();
    let blobs = world.cache().join("blobs");
    let downloaded = || {
        let files = fs::read_dir(&blobs).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).max().unwrap_or(0)
    };
    while downloaded() < 9_000_000 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let downloaded = downloaded();
    world.hub.on(|_| Fault::None);
    world.hub.forget_requests();
    succeeds(&mut world.hymba(["pull", REPO, "-q"]));
    assert!(
        world.hub.sent() < size() - downloaded + 10_000,
        "{} of {} bytes, {downloaded} were there",
        world.hub.sent(),
        size()
    );
}

/// Downloads of huggingface_hub and `hymba pull` wait for each other.
#[test]
fn download_locks_are_shared_with_huggingface_hub() {
    let world = World::with_model(VOCABULARY);
    let script =
        "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], 'model.safetensors')";
    for python_first in [true, false] {
        let Some(mut theirs) = python(&world, script) else { return };
        let mut ours = world.hymba(["pull", REPO, "-q", "--force"]);
        if world.cache().exists() {
            fs::remove_dir_all(world.cache()).unwrap();
        }
        world.hub.forget_requests();
        world.hub.on(|r| if r.is_get_of_data() { Fault::Slow(Duration::from_millis(10)) } else { Fault::None });
        let (first, second) = if python_first { (&mut theirs, &mut ours) } else { (&mut ours, &mut theirs) };
        let mut first = first.spawn().unwrap();
        while world.hub.sent() < 2_000_000 {
            thread::sleep(Duration::from_millis(10));
        }
        let second = second.spawn().unwrap().wait().unwrap();
        assert!(first.wait().unwrap().success() && second.success());
        assert!(world.hub.sent() < size() + 20_000, "{} bytes were sent", world.hub.sent());
    }
}
