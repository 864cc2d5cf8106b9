//! The binary's commands: invalid input gives one clear sentence and the right exit code, valid input works.

mod common;
#[cfg(unix)]
#[path = "common/terminal.rs"]
mod terminal;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{demo, fails, golden, hymba, quantize, runner, session_header, succeeds, text, unless_emulated};
use hymba::format::{
    DType,
    gguf::{Gguf, Layout, Metadata, Strings, Value, Writer},
};

/// Returns a converted model in `dir`.
fn tiny(dir: &Path) -> PathBuf {
    let path = dir.join("tiny.gguf");
    quantize(&golden("tiny-a"), &path, &["--type", "f32"]);
    path
}

#[test]
fn invalid_model_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    let run = |path: &Path| hymba(["eval", "logits", "--ids", "1", "-o", "never", "-m"]).arg(path).output().unwrap();
    let refused = |name: &str, bytes: &[u8], reason: &str| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fails(hymba(["run", "x", "-m"]).arg(&path), 1, &[name, reason]);
    };
    fails(&mut hymba(["run", "x", "-m", "no/such.gguf"]), 1, &["no/such.gguf"]);
    fails(hymba(["run", "x", "-m"]).arg(dir.path()), 1, &["is a directory", "quantize"]);
    refused("empty", b"", "is empty");
    let whole = fs::read(&model).unwrap();
    refused("magic", &[b"JUNK", &whole[4..]].concat(), "not a GGUF file");
    for cut in 1..=20 {
        let path = dir.path().join("cut");
        fs::write(&path, &whole[..whole.len() * cut / 21]).unwrap();
        let Output { status, stderr, .. } = run(&path);
        let stderr = text(&stderr);
        assert_eq!(status.code(), Some(1), "cut at {cut}/21: {stderr}");
        assert!(stderr.contains("cut: ") && !stderr.contains("panicked"), "cut at {cut}/21: {stderr}");
    }
    assert!(!Path::new("never").exists());
}

/// Writes a copy of `model` with its keys and tensors changed by `change`.
fn changed(model: &Path, path: &Path, change: impl FnOnce(&mut Metadata, &mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let gguf = Gguf::open(model).unwrap();
    let mut metadata = gguf.metadata.clone();
    let mut tensors: Vec<_> = gguf.tensors.iter().map(|t| (t.name.clone(), t.dims.clone(), t.data.to_vec())).collect();
    change(&mut metadata, &mut tensors);
    let infos = tensors.iter().map(|(name, dims, _)| (name.clone(), dims.clone(), DType::F32, Default::default()));
    let mut writer = Writer::create(path, Layout::new(metadata, infos.collect()).unwrap(), true).unwrap();
    tensors.iter().for_each(|(_, _, bytes)| writer.write(bytes).unwrap());
    writer.finish().unwrap();
}

#[test]
fn inconsistent_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bad) = (tiny(dir.path()), dir.path().join("bad.gguf"));
    let refused = |reason: &str| fails(hymba(["run", "x", "-m"]).arg(&bad), 1, &["bad.gguf", reason]);
    changed(&model, &bad, |meta, _| meta.set("general.architecture", "llama"));
    refused("`llama`");
    changed(&model, &bad, |_, tensors| tensors.retain(|t| t.0 != "blk.2.out_proj.weight"));
    refused("blk.2.out_proj.weight");
    changed(&model, &bad, |_, tensors| {
        tensors.iter_mut().find(|t| t.0 == "blk.1.ffn_up.weight").unwrap().1.reverse();
    });
    refused("blk.1.ffn_up.weight");
    changed(&model, &bad, |meta, _| meta.set("hymba.attention.head_count", 3u32));
    refused("is inconsistent");
    let keys: Vec<String> = Gguf::open(&model).unwrap().metadata.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys.iter().filter(|k| k.starts_with("hymba.") && !k.contains("meta_state") && !k.contains("scaling")) {
        changed(&model, &bad, |meta, _| meta.remove(key));
        refused(key);
        changed(&model, &bad, |meta, _| meta.set(key.as_str(), Value::Strings(Strings::default())));
        refused(key);
    }
    fails(hymba(["run", "x", "-m"]).arg(&model), 1, &["tiny.gguf", "tokenizer"]);
}

/// Copies a golden folder, to damage the copy.
fn copy(case: &str, target: &Path) {
    fs::create_dir_all(target).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&golden(case)).join(file), target.join(file)).unwrap();
    }
}

#[test]
fn invalid_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("folder"), dir.path().join("out.gguf"));
    let refused = |code, parts: &[&str]| {
        fails(hymba(["quantize"]).arg(&folder).arg(&out), code, parts);
        assert!(!out.exists());
    };
    refused(1, &["folder"]);
    copy("tiny-a", &folder);
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &bytes).unwrap();
    refused(1, &["NaN", "weight"]);
    fs::write(&weights, &bytes[..end / 2]).unwrap();
    refused(1, &["model.safetensors"]);
    copy("tiny-a", &folder);
    let config = folder.join("config.json");
    let good = fs::read_to_string(&config).unwrap();
    for (from, to) in
        [("\"hidden_size\"", "\"hidden_sise\""), ("\"hidden_size\": 64", "\"hidden_size\": 96"), ("{", "[")]
    {
        fs::write(&config, good.replacen(from, to, 1)).unwrap();
        refused(1, &[]);
    }
    fs::write(&config, good.replace("\"num_experts\": 1", "\"num_experts\": 4")).unwrap();
    refused(1, &["num_experts"]);
    fs::write(&config, &good).unwrap();
    fails(hymba(["quantize", "--type", "q3_k"]).arg(&folder).arg(&out), 2, &["q3_k", "small"]);
    fs::write(&out, "mine").unwrap();
    fails(hymba(["quantize"]).arg(&folder).arg(&out), 1, &["out.gguf", "--force"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
    succeeds(hymba(["quantize", "--force"]).arg(&folder).arg(&out));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left behind");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_no_partial_file() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&disk).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: needs permission to mount a tmpfs");
        return;
    }
    let mut command = hymba(["quantize", &golden("tiny-b")]);
    let Output { status, stderr, .. } = command.arg(disk.join("full.gguf")).output().unwrap();
    let count = fs::read_dir(&disk).unwrap().count();
    Command::new("umount").arg(&disk).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(text(&stderr).contains("full.gguf") && text(&stderr).contains("space"), "{}", text(&stderr));
    assert_eq!(count, 0, "no partial file is left");
}

#[test]
fn invalid_prompts_ids_and_flags_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join("latin1.txt");
    fs::write(&latin, b"caf\xe9").unwrap();
    let out = dir.path().join("out.safetensors");
    fails(&mut hymba(["run", "-c", "4", "Once upon a time there was a fox"]), 1, &["context", "-c"]);
    fails(hymba(["eval", "logits", "--ids", "1,999999", "-o"]).arg(&out), 1, &["999999", "vocabulary"]);
    fails(hymba(["eval", "logits", "--ids", "1,x", "-o"]).arg(&out), 2, &["--ids"]);
    fails(hymba(["run", "-f"]).arg(&latin), 1, &["latin1.txt", "UTF-8"]);
    fails(hymba(["eval", "perplexity"]).arg(&latin), 1, &["latin1.txt", "UTF-8"]);
    fails(hymba(["run", "-p", "a", "-f"]).arg(&latin), 2, &["--file"]);
    fails(&mut hymba(["run"]), 2, &["prompt"]);
    fails(&mut hymba(["run", "a", "--temp", "-3"]), 2, &["--temp"]);
    fails(&mut hymba(["run", "a", "-t", "0"]), 2, &["--threads"]);
    fails(hymba(["run", "a", "--stop"]).arg("b".repeat(1025)), 2, &["--stop", "1025 bytes", "the limit is 1024"]);
    fails(hymba(["chat"]).args(["--stop", "b"].repeat(65)), 2, &["--stop", "65 stop strings", "64 at most"]);
    fails(&mut hymba(["quantise", "a", "b"]), 2, &["quantize"]);
    assert!(!out.exists());
}

const GREEDY: [&str; 5] = ["run", "--quiet", "--no-display-prompt", "--temp", "0"];

#[test]
fn the_demo_generates_reproducible_text() {
    let demo = || {
        let mut command = hymba(GREEDY);
        command.env_remove("HYMBA_MODEL");
        command
    };
    let text = succeeds(demo().args(["-n", "12", "Once upon a time there was"]));
    assert!(text.starts_with(" a kind boy"), "{text}");
    let seeded = |threads| succeeds(&mut hymba(["run", "-q", "The fox", "-n", "24", "--seed", "5", "-t", threads]));
    assert_eq!(seeded("1"), seeded("2"));
    assert!(seeded("3").starts_with("The fox"));
    let stopped = succeeds(demo().args(["-n", "50", "--stop", "kind", "Once upon a time there was"]));
    assert_eq!(stopped, " a ");

    let json = succeeds(hymba(GREEDY).args(["--json", "-n", "7", "--ignore-eos", "Once"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["ids"].as_array().unwrap().len(), 7);
    assert_eq!(json["stop_reason"], "limit");
    assert!(json["cache_bytes"].as_u64().unwrap() > 0 && json["timings"]["load_seconds"].is_number());
    assert!(!json["text"].as_str().unwrap().is_empty());
}

#[test]
fn backends_are_listed_and_selected() {
    let devices = succeeds(&mut hymba(["run", "--list-devices"]));
    assert!(devices.starts_with("cpu ") && devices.contains(" threads, "), "{devices}");
    let generate =
        |backend| succeeds(&mut hymba(["run", "-q", "--temp", "0", "-n", "3", "--backend", backend, "Once"]));
    if cfg!(not(target_os = "macos")) {
        assert_eq!(devices.lines().count(), 1);
        assert_eq!(generate("auto"), generate("cpu"));
        fails(
            &mut hymba(["run", "--backend", "metal", "Once"]),
            1,
            &["Metal is only available on macOS", "--backend cpu"],
        );
    }
    fails(&mut hymba(["run", "--backend", "gpu", "Once"]), 2, &["--backend", "auto, cpu, metal"]);
}

#[test]
fn pipes_are_read_and_may_close() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = dir.path().join("prompt.txt");
    fs::write(&prompt, "Once upon a time there was\n").unwrap();
    let piped = succeeds(hymba(GREEDY).args(["-n", "4"]).stdin(fs::File::open(&prompt).unwrap()));
    assert_eq!(piped, succeeds(hymba(GREEDY).args(["-n", "4", "-f"]).arg(&prompt)));
    // a reader that closes the pipe ends the text silently
    let mut child = hymba(["run", "Once", "-q", "--ignore-eos"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // likewise for a report
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let report = hymba(["inspect", "--json"]).arg(demo()).stdout(writer).output().unwrap();
    assert!(report.status.success() && report.stderr.is_empty(), "{}", text(&report.stderr));
}

/// `\n` is a line break only with --escape; without it a note suggests the flag.
#[test]
fn the_escape_flag_interprets_backslashes() {
    let run = |more: &[&str]| {
        let output = hymba(["run", "--temp", "0", "-n", "4", "--json"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let json: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        (json["prompt"].as_str().unwrap().to_owned(), text(&output.stderr))
    };
    assert_eq!(run(&["-e", r"a\tb\u00e9"]).0, "a\tbé");
    assert_eq!(run(&["-p", r"a\tb"]).0, r"a\tb");
    for (args, is_noted) in [
        (&["Once", "--stop", r"\n"][..], true),
        (&["Once", "--stop", r"\n", "--escape"], false),
        (&["Once", "--stop", r"\n", "-q"], false),
        (&["Once", "--stop", "\n"], false),
        (&["Once", "--stop", r"\d"], false),
    ] {
        assert_eq!(run(args).1.contains("--escape"), is_noted, "{args:?}");
    }
    let story = ["chat", "-q", "-st", "--temp", "0", "-n", "20", "Tell me a story"];
    let whole = succeeds(&mut hymba(story));
    let letter = whole.trim().chars().nth(4).unwrap();
    let stop = format!("\\u{:04x}", letter as u32);
    assert_eq!(succeeds(hymba(story).args(["--stop", &stop])), whole);
    let ended = succeeds(hymba(story).args(["--escape", "--stop", &stop]));
    assert_eq!(ended.trim(), whole.trim().split(letter).next().unwrap().trim());
    fails(&mut hymba(["run", "-e", r"\xff"]), 2, &["the prompt", "UTF-8"]);
}

/// A byte order mark at the start of a file is ignored.
#[test]
fn byte_order_marks_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let with_bom = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        fs::write(path("bom"), format!("\u{feff}{text}")).unwrap();
        [path(name), path("bom")]
    };
    let equal = |outputs: [String; 2]| assert_eq!(outputs[0], outputs[1]);
    let story = with_bom("story", "Once upon a time there was a fox. It lived in a wood.");
    let run = || hymba(["run", "-q", "--temp", "0", "-n", "4"]);
    equal(story.each_ref().map(|file| succeeds(run().arg("-f").arg(file))));
    equal(story.each_ref().map(|file| succeeds(run().stdin(fs::File::open(file).unwrap()))));
    let chat = || hymba(["chat", "-q", "--temp", "0", "-n", "4"]);
    equal(story.each_ref().map(|file| succeeds(chat().stdin(fs::File::open(file).unwrap()))));
    equal(story.each_ref().map(|file| succeeds(chat().args(["-st", "Hello", "--system-file"]).arg(file))));
    let nll = |file: &PathBuf| {
        let json = succeeds(hymba(["eval", "perplexity", "--json"]).arg(file));
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["nll"].to_string()
    };
    equal(story.each_ref().map(nll));
    equal(with_bom("ids", "1 5 9").each_ref().map(|file| {
        succeeds(hymba(["eval", "logits", "--force", "--ids-file"]).arg(file).arg("-o").arg(path("logits")));
        format!("{:?}", fs::read(path("logits")).unwrap())
    }));
}

/// Endless input files are refused by all commands.
#[cfg(unix)]
#[test]
fn endless_inputs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (demo(), dir.path().join("out"));
    for command in [
        &["eval", "perplexity", "/dev/zero"][..],
        &["eval", "logits", "--ids-file", "/dev/zero", "-o", "never"],
        &["run", "-f", "/dev/zero"],
        &["chat", "--system-file", "/dev/zero"],
        &["quantize", &model, out.to_str().unwrap(), "--calibrate", "/dev/zero"],
    ] {
        fails(&mut hymba(command), 1, &["/dev/zero: is larger than the limit of 16 MB"]);
    }
}

#[cfg(unix)]
#[test]
fn sigint_keeps_the_generated_text() {
    use std::io::Read;
    let mut child = hymba(["run", "Once upon a time", "-q", "--ignore-eos", "-c", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut output = vec![0; 40];
    out.read_exact(&mut output).unwrap();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    out.read_to_end(&mut output).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(text(&output).starts_with("Once upon a time"));
}

/// Returns a run that takes drafts of seven tokens per pass from the expected text in `reference`.
fn drafted(reference: &Path, flags: &[&str]) -> Command {
    let mut command = hymba(["run", "Once upon a time", "-q", "--seed", "7", "--ignore-eos", "-c", "2048"]);
    command.args(["--speculate", "7", "--draft-from"]).arg(reference).args(flags);
    command
}

/// Writes the text of such a run without drafts to `path`, and returns it.
fn undrafted(path: &Path, tokens: usize) -> String {
    let tokens = tokens.to_string();
    let flags =
        ["--seed", "7", "--ignore-eos", "-c", "2048", "--speculate", "off", "--no-display-prompt", "-n", &tokens];
    let output = succeeds(hymba(["run", "Once upon a time", "-q"]).args(flags));
    fs::write(path, &output).unwrap();
    output
}

#[test]
fn drafts_from_a_file_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (reference, prompts) = (dir.path().join("reference.txt"), dir.path().join("prompts.jsonl"));
    let expected = undrafted(&reference, unless_emulated(120, 20));
    let json = succeeds(&mut drafted(&reference, &["--json", "-n", unless_emulated("120", "20")]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["text"].as_str(), Some(expected.trim_end_matches('\n')));
    let accepted = json["speculation"]["accepted_tokens"].as_u64().unwrap();
    assert!(accepted >= unless_emulated(80, 10), "{}", json["speculation"]);
    fails(&mut drafted(Path::new("no/such.txt"), &[]), 1, &["no/such.txt", "No such file"]);
    fs::write(&prompts, "{\"prompt\": \"a\"}\n").unwrap();
    let mut batch = hymba(["run", "-o", "never", "--draft-from", "x", "--batch"]);
    fails(batch.arg(&prompts), 2, &["--draft-from", "--batch"]);
}

/// SIGINT while a draft is verified: text and session equal those of a run without drafts that ends at the same token.
#[cfg(unix)]
#[test]
fn an_interrupted_draft_saves_the_session_of_single_steps() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    undrafted(&path("reference"), unless_emulated(600, 60));
    for (i, bytes) in [30, unless_emulated(250, 50), unless_emulated(601, 71)].into_iter().enumerate() {
        let (session, plain) = (path(&format!("session {i}")), path(&format!("plain {i}")));
        let mut command = drafted(&path("reference"), &["--session", session.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut output = vec![0; bytes];
        out.read_exact(&mut output).unwrap();
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        out.read_to_end(&mut output).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let steps = &session_header(&session)["steps"];
        let prompt = steps["prompts"][0][1].as_u64().unwrap();
        let generated = (steps["ids"].as_array().unwrap().len() as u64 - prompt).to_string();
        let flags = ["--seed", "7", "--ignore-eos", "-c", "2048", "--speculate", "off", "-n", &generated, "--session"];
        let want = succeeds(hymba(["run", "Once upon a time", "-q"]).args(flags).arg(&plain));
        assert_eq!(text(&output), want, "{generated} tokens");
        assert!(fs::read(&session).unwrap() == fs::read(&plain).unwrap(), "{generated} tokens: the sessions differ");
    }
}

/// Packed and standard layout have the same values: converting back and forth changes no byte, and logits are bit-identical.
#[test]
fn packing_is_lossless() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for dtype in ["q4_0", "q8_0"] {
        let (standard, packed, back) = (path("standard"), path("packed"), path("back"));
        let flags = |layout| ["--force", "--type", dtype, "--layout", layout];
        quantize(&golden("tiny-b"), &standard, &flags("standard"));
        quantize(standard.to_str().unwrap(), &packed, &flags("packed"));
        quantize(packed.to_str().unwrap(), &back, &flags("standard"));
        let [a, b] = [&standard, &back].map(|p| Gguf::open(p).unwrap());
        for (a, b) in a.tensors.iter().zip(&b.tensors).filter(|(a, _)| !a.name.starts_with("meta_state")) {
            assert!(
                (&a.name, a.dtype, &a.dims) == (&b.name, b.dtype, &b.dims) && a.data[..] == b.data[..],
                "{}",
                a.name
            );
        }
        let both = [&standard, &packed].map(|model| {
            let out = path("logits");
            let args = ["eval", "logits", "--ids", "3,1,4,1,5,9", "--decode", "8", "--force", "-o"];
            succeeds(hymba(args).arg(&out).arg("-m").arg(model));
            let bytes = fs::read(out).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(tensors.tensor("prefill").unwrap().shape(), [6, 320]);
            assert_eq!(tensors.tensor("decode").unwrap().shape(), [8, 320]);
            ["prefill", "decode", "tokens"].map(|name| tensors.tensor(name).unwrap().data().to_vec())
        });
        assert!(both[0] == both[1], "{dtype}: the logits differ");
    }
}

#[test]
fn inspect_describes_the_demo() {
    let demo = format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"));
    assert!(succeeds(&mut hymba(["inspect", &demo])).contains("47,998,208"));
    assert!(succeeds(&mut hymba(["inspect", "--tensors", &demo])).contains("blk.11.ssm_a"));
    let json: serde_json::Value = serde_json::from_str(&succeeds(&mut hymba(["inspect", "--json", &demo]))).unwrap();
    assert!(json.is_object());
}

/// The rows, limits and profile of a small run, in every format.
#[test]
fn bench_reports_every_row_and_limit() {
    // limits are measured after every run, which takes seconds under emulation
    let (counts, threads, runs) = unless_emulated((2, "1,2", 2), (1, "1", 1));
    let small = format!("bench -p 20 -n 3 --ttft 5 -d 0,30 -t {threads} -r {runs} --profile");
    let run = |format: &str| succeeds(hymba(small.split(' ')).args(["-o", format]));
    let json: serde_json::Value = serde_json::from_str(&run("json")).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * counts * 3);
    assert_eq!(rows[0]["test"], "pp20");
    assert_eq!(rows.last().unwrap()["test"], "ttft 5 @ d30");
    for row in rows {
        let numbers = if row["milliseconds"].is_null() { &row["tokens_per_second"] } else { &row["milliseconds"] };
        let counted = numbers["runs"].as_array().unwrap().len() as u64;
        assert!(counted > 0 && counted + row["runs_left_out"].as_u64().unwrap() == runs);
        assert!(numbers["min"].as_f64() > Some(0.0) && numbers["min"].as_f64() <= numbers["mean"].as_f64());
        assert!(row["profile_seconds"]["matmul"].as_f64() > Some(0.0));
    }
    // the longer the text, the more of the KV cache a decode step reads
    let decode = |depth| rows.iter().find(|r| r["depth"] == depth && r["test"].as_str().unwrap().starts_with("tg"));
    assert!(decode(30).unwrap()["bytes_per_token"].as_f64() > decode(0).unwrap()["bytes_per_token"].as_f64());
    assert_eq!(json["limits"].as_array().unwrap().len(), 2 * counts * 2);
    assert!(json["limits"].as_array().unwrap().iter().all(|l| l["read_bytes_per_second"].as_f64() > Some(0.0)));

    if runner().is_some() {
        return; // the formats do not depend on the CPU
    }
    let lines = run("jsonl");
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert_eq!(lines.lines().count(), 12);
    assert_eq!(run("csv").lines().count(), 13);
    assert!(run("md").contains("| pp20 | 1 |"));
}

/// Invalid sampling settings in a model file are reported and ignored.
#[test]
fn invalid_recommended_sampling_settings_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("settings.gguf");
    let demo = Gguf::open(Path::new(&common::demo_of_any_depth())).unwrap();
    let mut metadata = demo.metadata.clone();
    metadata.set("general.sampling.top_p", 1.5f32);
    metadata.set("general.sampling.temp", "hot");
    common::write_with_metadata(&demo, metadata, &model);
    for command in [&["run", "-n", "2", "Once"][..], &["chat", "-n", "2", "-st", "Hello"]] {
        let Output { status, stderr, .. } = hymba(command).arg("-m").arg(&model).output().unwrap();
        let stderr = text(&stderr);
        assert!(status.success(), "{stderr}");
        for part in ["recommends general.sampling.top_p 1.5, which must be from 0 to 1", "temp that is not a number"] {
            assert!(stderr.contains(part), "{stderr}");
        }
        let quiet = hymba(command).args(["-q", "--top-p", "0.5", "-m"]).arg(&model).output().unwrap();
        assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
    }
}

/// Usage errors fit the terminal's width, or COLUMNS if the terminal does not report one.
#[cfg(unix)]
#[test]
fn usage_errors_fit_the_terminal() {
    use terminal::{Terminal, fits};
    for args in [&["run", "--temp", "foo"][..], &["run", "--tepm", "3"], &["quantize"], &["pull", "a/b/c"]] {
        let (code, wide) = Terminal::start(&hymba(args), 400).wait();
        assert!(code == 2 && !fits(&wide, 40), "{wide}");
        for (columns, variable) in [(40, "200"), (0, "40")] {
            let (code, narrow) = Terminal::start(hymba(args).env("COLUMNS", variable), columns).wait();
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert!(code == 2 && fits(&narrow, 40) && words(&narrow) == words(&wide), "{args:?}: {narrow}");
        }
    }
}
