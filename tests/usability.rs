//! First use of the binary: input from arguments, files and pipes is used or refused, never ignored.

mod common;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::{
    demo, demo_of_any_depth, fails, golden, hymba, runner, session_header, succeeds, text, write_with_metadata,
};
use hymba::format::gguf::Gguf;
use serde_json::Value;

/// Returns the output of the command with `input` as piped standard input.
#[track_caller]
fn piped(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // the command may not read it
    child.wait_with_output().unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Returns the prompt of `run` with these arguments and piped `input`.
#[track_caller]
fn prompt(args: &[&str], input: &str) -> String {
    let Output { status, stdout, stderr } = piped(&mut hymba([&["run", "--json", "-n", "1"], args].concat()), input);
    assert!(status.success(), "{}", text(&stderr));
    json(&text(&stdout))["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn prompt_and_stdin_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "From a file:\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, expected) in [
        (&["Summarize:"][..], "Summarize:\n\na\nb"),
        (&["-p", "Summarize:"], "Summarize:\n\na\nb"),
        (&["-f", file], "From a file:\n\na\nb"),
        (&["-f", "-"], "a\nb"),
        (&["-"], "a\nb"),
        (&[], "a\nb"),
        (&["--no-stdin", "Summarize:"], "Summarize:"),
    ] {
        assert_eq!(prompt(args, "a\nb\n"), expected, "{args:?}");
    }
    assert_eq!(prompt(&["Hello"], ""), "Hello", "a pipe may be empty");
    // a file is read as well, a device is not
    let output = hymba(["run", "--json", "-n", "1", "Hello"]).stdin(fs::File::open(file).unwrap()).output().unwrap();
    assert_eq!(json(&text(&output.stdout))["prompt"], "Hello\n\nFrom a file:");
    assert_eq!(json(&succeeds(&mut hymba(["run", "--json", "-n", "1", "Hello"])))["prompt"], "Hello");
    fails(&mut hymba(["run", "--no-stdin"]), 2, &["no prompt given"]);
}

#[test]
fn single_turn_joins_message_and_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let session = dir.path().join("talk").display().to_string();
    for (args, message) in [(&["-st"][..], "one\n\ntwo"), (&["-st", "Summarize:"], "Summarize:\n\none\n\ntwo")] {
        let mut command = hymba([&["chat", "-q", "-n", "1", "--save-on-exit", &session], args].concat());
        assert!(piped(&mut command, "one\n\ntwo\n").status.success());
        let turns = session_header(session.as_ref())["more"]["chat"]["branches"]["main"]["turns"].clone();
        assert_eq!((turns.as_array().unwrap().len(), &turns[0]["user"]), (1, &message.into()), "{args:?}");
    }
    fails(&mut hymba(["chat", "-st"]), 2, &["-st requires a message"]);
    let alone = succeeds(&mut hymba(["chat", "-q", "-n", "2", "--no-stdin", "--seed", "1", "Hello"]));
    assert_eq!(alone, succeeds(&mut hymba(["chat", "-q", "-n", "2", "-st", "--seed", "1", "Hello"])));
}

#[test]
fn waiting_for_stdin_is_reported_after_a_second() {
    let mut child = hymba(["run", "-q", "-n", "1", "Hello"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    thread::sleep(Duration::from_millis(2500));
    drop(input);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success() && text(&stderr).contains("--no-stdin"), "{}", text(&stderr));
}

#[test]
fn the_summary_shows_a_32_bit_seed() {
    for _ in 0..3 {
        let report = json(&succeeds(&mut hymba(["run", "--json", "-n", "1", "Hello"])));
        assert!(report["seed"].as_u64().unwrap() < 1 << 32);
    }
    let Output { stderr, .. } = hymba(["run", "-n", "3", "-s", "4711", "Hello"]).output().unwrap();
    let stderr = text(&stderr);
    let summary = stderr.lines().last().unwrap();
    let form = regex::Regex::new(
        r"^hymba: prompt \d+ tokens?, \d[\d.]* tok/s · generated 3 tokens, \d[\d.]* tok/s · cache \d+ MB · seed 4711$",
    );
    assert!(form.unwrap().is_match(summary), "{summary}");
    let Output { stderr, .. } = hymba(["run", "-n", "3", "--verbose", "Hello"]).output().unwrap();
    let stderr = text(&stderr);
    assert!(
        stderr.contains("loaded in ") && stderr.contains(" GB/s") && stderr.contains("stopped at limit"),
        "{stderr}"
    );
}

#[test]
fn flags_without_effect_are_refused() {
    let (model, dir) = (golden("tiny-a"), tempfile::tempdir().unwrap());
    let out = dir.path().join("out.gguf").display().to_string();
    fails(hymba(["run", "-n", "1", "a"]).env("HYMBA_KERNELS", "foo"), 2, &["HYMBA_KERNELS=foo", "scalar"]);
    for (line, error) in [
        (&["quantize", &model, "-"][..], "name a file"),
        (&["quantize", &model, &out, "--damping", "0.1"], "--rounding gptq"),
        (&["quantize", &model, &out, "--column-order", "stored"], "--rounding gptq"),
        (&["quantize", &model, &out, "--calibration-tokens", "64"], "--calibrate"),
        (&["run", "a", "--session", "-"], "name a file"),
        (&["run", "a", "--prompt-cache", "-"], "name a file"),
        (&["run", "a", "--force"], "--force applies to"),
        (&["run", "a", "--system", "b"], "--chat"),
        (&["chat", "-st", "a", "--force"], "--force applies to"),
        (&["chat", "-st", "a", "--session", "-"], "name a file"),
        (&["chat", "-st", "a", "--session", "a", "--resume", "b"], "--resume"),
        (
            &["chat", "-st", "a", "--chat-template", "chatlm"],
            "unknown chat template `chatlm`; available: chatml, hymba",
        ),
        (&["chat", "-st", "a", "--chat-template", "{{ bos_token }}"], "`messages`"),
        (&["run", "a", "-n", "99999999999"], "a whole number of tokens, or -1 for no limit"),
        (&["run", "a", "-t", "1000"], "a whole number from 1 to 512"),
        (&["quantize", &model, &out, "--type", "Q4_K_M"], "use q4"),
        (&["eval", "logits", "--ids", "1,x", "-o", &out], "must be token ids separated by commas"),
        (&["eval", "logits", "--ids", "1", "--decode", "x", "-o", &out], "must be a non-negative integer"),
        (&["run", "a", "--context-file", &out], "--tools and --context-file require --chat and cannot be used"),
    ] {
        fails(&mut hymba(line), 2, &[error]);
    }
    // A model that cannot be converted is not to be converted by the command that fails.
    let notes = dir.path().join("notes.gguf").display().to_string();
    fs::write(&notes, "some notes").unwrap();
    let hint = "notes.gguf: is not a GGUF file; name a Hugging Face folder or a GGUF file\n";
    fails(&mut hymba(["quantize", &notes, &out]), 1, &[hint]);
    fails(&mut hymba(["run", "a", "-m", "no/such.gguf"]), 1, &["no/such.gguf: No such file or directory"]);
    let Output { stderr, .. } = hymba(["run", "a", "-m", "no/such.gguf"]).output().unwrap();
    assert!(!text(&stderr).contains("os error"));
    // settings that only make sense otherwise cause a warning
    let warned = |args: &[&str], warning: &str| {
        let Output { status, stderr, .. } = hymba(args).output().unwrap();
        assert!(status.success() && text(&stderr).contains(&format!("hymba: warning: {warning}")), "{}", text(&stderr));
    };
    warned(
        &["run", "-n", "1", "-c", "2000", "a"],
        "the context of 2,000 tokens exceeds the model's training context of 1,024",
    );
    let plain = dir.path().join("plain.gguf");
    let gguf = Gguf::open(Path::new(&demo_of_any_depth())).unwrap();
    let mut metadata = gguf.metadata.clone();
    metadata.remove("tokenizer.chat_template");
    write_with_metadata(&gguf, metadata, &plain);
    let plain = plain.to_str().unwrap();
    warned(&["chat", "-m", plain, "-n", "1", "-st", "a", "--system", "b"], "the model has no chat template");
    fails(&mut hymba(["run", "-m", plain, "--chat", "a"]), 2, &["--chat: the model has no chat template"]);
}

#[test]
fn invalid_flags_are_reported_without_the_model_notice() {
    for line in [
        &["run", "a", "--regex", "("][..],
        &["run", "a", "--json-schema", "{\"not\": {}}"],
        &["run", "--batch", "no-such-file", "-o", "-"],
        &["chat", "-st", "a", "--regex", "("],
        &["chat", "-st", "a", "--chat-template", "chatlm"],
        &["chat", "-st"],
    ] {
        let Output { status, stderr, .. } = hymba(line).output().unwrap();
        let stderr = text(&stderr);
        assert!(status.code() == Some(2) && !stderr.contains("no model given"), "{line:?}: {stderr}");
    }
    let Output { stderr, .. } = hymba(["run", "-n", "1", "a"]).output().unwrap();
    assert!(text(&stderr).contains("no model given"), "{}", text(&stderr));
}

/// A reply that does not end: all tokens are equally likely.
const HOT: [&str; 12] =
    ["--temp", "1000", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--repeat-penalty", "1", "--seed", "1"];

#[test]
fn chat_replies_have_a_default_length_limit() {
    if runner().is_some() {
        eprintln!("SKIPPED: under emulation 512 tokens take minutes");
        return;
    }
    let chat = |more: &[&str]| {
        let Output { status, stdout, stderr } =
            hymba([&["chat", "-st", "--jsonl", "-c", "700", "Hello"], &HOT[..], more].concat()).output().unwrap();
        assert!(status.success(), "{}", text(&stderr));
        (json(text(&stdout).lines().last().unwrap()), text(&stderr))
    };
    let (end, stderr) = chat(&[]);
    assert_eq!((&end["generated_tokens"], &end["stop_reason"]), (&512.into(), &"limit".into()));
    assert!(stderr.contains("cut off after 512 tokens; -n N changes that, -1 is no limit"), "{stderr}");
    let (end, stderr) = chat(&["-n", "4"]);
    assert!(end["generated_tokens"] == 4 && !stderr.contains("cut off"), "{stderr}");
    let (end, _) = chat(&["-n", "-1"]);
    assert_eq!(end["stop_reason"], "context_full");
    // `run` with piped output has no default limit
    let run = ["run", "--json", "--ignore-eos", "-c", "600", "Hello"];
    let whole = json(&succeeds(hymba(run).args(HOT)));
    assert!(whole["stop_reason"] == "context_full" && whole["generated_tokens"].as_u64() > Some(512));
    // the model file may set the limit
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.gguf");
    let gguf = Gguf::open(Path::new(&demo_of_any_depth())).unwrap();
    let mut metadata = gguf.metadata.clone();
    metadata.set("general.sampling.max_new_tokens", 7u32);
    write_with_metadata(&gguf, metadata, &short);
    assert_eq!(chat(&["-m", short.to_str().unwrap()]).0["generated_tokens"], 7);
}

#[test]
fn run_applies_the_chat_template() {
    let question = ["--seed", "3", "-n", "30", "What is the capital of France?"];
    let from_run = succeeds(&mut hymba([&["run", "-q", "--chat", "--no-display-prompt"], &question[..]].concat()));
    let from_chat = succeeds(&mut hymba([&["chat", "-q", "-st"], &question[..]].concat()));
    assert_eq!(from_run.trim_end(), from_chat.trim_end());
    let brief = ["--system", "Be brief."];
    let from_run =
        succeeds(hymba([&["run", "-q", "--chat", "--no-display-prompt"], &question[..]].concat()).args(brief));
    let from_chat = succeeds(hymba([&["chat", "-q", "-st"], &question[..]].concat()).args(brief));
    assert_eq!(from_run.trim_end(), from_chat.trim_end());
    let has_note = |args: &[&str]| text(&hymba(args).output().unwrap().stderr).contains("apply it with --chat");
    assert!(has_note(&["run", "-n", "1", "Hello"]) && !has_note(&["run", "-n", "1", "--chat", "Hello"]));
    assert!(!has_note(&["run", "-q", "-n", "1", "Hello"]));
}

#[test]
fn a_chat_session_is_created_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let session = dir.path().join("talk").display().to_string();
    let turns = |message: &str| {
        succeeds(&mut hymba(["chat", "-q", "-n", "2", "--session", &session, "-st", message]));
        let turns = session_header(session.as_ref())["more"]["chat"]["branches"]["main"]["turns"].clone();
        turns.as_array().unwrap().len()
    };
    assert_eq!((turns("Hello"), turns("And then?")), (1, 2));
    fs::write(&session, "mine").unwrap();
    fails(&mut hymba(["chat", "-q", "--session", &session, "-st", "a"]), 1, &["was not replaced"]);
    succeeds(&mut hymba(["chat", "-q", "-n", "1", "--force", "--session", &session, "-st", "a"]));
    assert_eq!(session_header(session.as_ref())["more"]["kind"], "chat");
}

#[test]
fn history_and_set_context_work() {
    let lines =
        "Hello\nAnd then?\n/history 1\n/set context 2000\n/set overflow slide\n/show\n/regen\n/set context 3\n/bye\n";
    let Output { stdout, stderr, .. } = piped(&mut hymba(["chat", "-n", "3", "--seed", "1", "--commands"]), lines);
    let (shown, stderr) = (text(&stdout), text(&stderr));
    assert!(shown.contains("> And then?\n") && !shown.contains("> Hello"), "{shown}");
    assert!(shown.contains(" of 2,000 tokens used; overflow slide"), "{shown}");
    assert!(
        stderr.contains("training context of 1,024") && stderr.contains("/set context 3: the conversation"),
        "{stderr}"
    );
    // the processed tokens are kept: the reply is the same as with the larger context from the start
    let replies = |lines: &str, more: &[&str]| {
        text(&piped(hymba(["chat", "-q", "-n", "8", "--seed", "1", "--commands"]).args(more), lines).stdout)
    };
    assert_eq!(replies("Hello\n/set context 2000\nAnd then?\n", &[]), replies("Hello\nAnd then?\n", &["-c", "2000"]));
}

#[test]
fn jsonl_prints_one_event_per_line() {
    let lines = |command: &mut Command, input: &str| -> Vec<Value> {
        let Output { status, stdout, stderr } = piped(command, input);
        assert!(status.success(), "{}", text(&stderr));
        text(&stdout).lines().map(json).collect()
    };
    let generated = |events: &[Value]| {
        let pieces =
            events.iter().filter(|event| event["event"] == "text").map(|event| event["text"].as_str().unwrap());
        pieces.collect::<String>()
    };
    let run = lines(&mut hymba(["run", "--jsonl", "-n", "6", "--seed", "2", "Once upon a time"]), "");
    let end = run.last().unwrap();
    assert!(run.iter().all(|event| event["version"] == 1));
    assert_eq!((&end["event"], end["text"].as_str()), (&"end".into(), Some(&*generated(&run))));
    assert_eq!(end["generated_tokens"], 6);
    let chat = lines(&mut hymba(["chat", "--jsonl", "-n", "4", "--seed", "2", "--commands"]), "Hello\n/show\nBye\n");
    let of = |event: &str| chat.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(of("start").iter().map(|event| &event["turn"]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(of("end").iter().map(|event| event["text"].as_str().unwrap()).collect::<String>(), generated(&chat));
    assert!(of("output")[0]["text"].as_str().unwrap().contains("settings"));
    for command in [&["run", "--json", "-n", "1", "a"][..], &["inspect", "--json"]] {
        assert_eq!(json(&succeeds(&mut hymba(command)))["version"], 1, "{command:?}");
    }
}

#[test]
fn flag_names_of_other_programs_are_accepted() {
    let ours = ["-n", "3", "-c", "300", "--temp", "0.5", "--seed", "4", "Hello"];
    let theirs = ["--n-predict", "3", "--ctx-size", "300", "--temperature", "0.5", "-s", "4", "Hello"];
    let others = ["--max-tokens", "3", "--ctx-size", "300", "--temperature", "0.5", "-s", "4", "Hello"];
    let run = |args: &[&str]| succeeds(&mut hymba([&["run", "-q"], args].concat()));
    assert!(run(&ours) == run(&theirs) && run(&ours) == run(&others));
    let chat = |flag| succeeds(&mut hymba(["chat", "-q", "-st", "-n", "5", "--temp", "0", flag, "Be brief.", "Hello"]));
    assert!(chat("--system") == chat("--system-prompt") && chat("--system") == chat("-sys"));
    for hidden in ["--ctx-size", "--n-predict", "--max-tokens", "--temperature", "--system-prompt"] {
        assert!(!succeeds(&mut hymba(["help", "chat"])).contains(hidden), "{hidden}");
    }
}

#[test]
fn quantize_names_the_model_and_suggests_the_next_command() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--nvidia--Hymba-1.5B-Base");
    let snapshot = repository.join("snapshots").join("0a".repeat(20));
    fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&golden("tiny-a")).join(file), snapshot.join(file)).unwrap();
    }
    fs::write(snapshot.join("README.md"), "---\nlicense: other\nlicense_name: some-license\n---\n# A heading\n")
        .unwrap();
    let out = dir.path().join("out.gguf");
    let quantize = |input: &Path, more: &[&str]| {
        let output = succeeds(hymba(["quantize", "--force"]).arg(input).arg(&out).args(more));
        (output, Gguf::open(&out).unwrap().metadata)
    };
    for input in [&snapshot, &repository, &repository.join("snapshots")] {
        let (output, metadata) = quantize(input, &[]);
        assert_eq!(metadata.string("general.name"), Some("Hymba-1.5B-Base"));
        assert_eq!(metadata.string("general.organization"), Some("nvidia"));
        assert_eq!(metadata.string("general.license"), Some("some-license"));
        let last: Vec<_> = output.lines().rev().take(2).collect();
        assert!(last[1].contains("out.gguf: 0.") && last[1].contains(" MB, "), "{output}");
        assert!(last[0].starts_with("try it: hymba run -m ") && last[0].contains("out.gguf"), "{output}");
    }
    assert_eq!(quantize(&repository, &["--name", "mine"]).1.string("general.name"), Some("mine"));
    // outside the cache: the name in the card, the folder's name, or a heading if the folder's name is a hash
    let plain = dir.path().join("a-folder");
    fs::rename(&snapshot, &plain).unwrap();
    assert_eq!(quantize(&plain, &[]).1.string("general.name"), Some("a-folder"));
    fs::write(plain.join("README.md"), "---\nmodel_name: A Model\n---\n# A heading\n").unwrap();
    assert_eq!(quantize(&plain, &[]).1.string("general.name"), Some("A Model"));
    let hash = dir.path().join("0b".repeat(20));
    fs::rename(&plain, &hash).unwrap();
    fs::write(hash.join("README.md"), "# A heading\n").unwrap();
    assert_eq!(quantize(&hash, &["--type", "Q8_0"]).1.string("general.name"), Some("A heading"));
}

#[test]
fn eval_reads_stdin_and_inspect_uses_the_default_model() {
    let Output { status, stdout, .. } =
        piped(&mut hymba(["eval", "perplexity", "-", "--json"]), "Once upon a time there was a fox.");
    assert!(status.success() && json(&text(&stdout))["tokens"].as_u64() > Some(5));
    let whole = succeeds(&mut hymba(["inspect", "--json"]));
    assert_eq!(
        json(&whole)["parameters"],
        json(&succeeds(hymba(["inspect", "--json", "-m"]).arg(demo_of_any_depth())))["parameters"]
    );
    fails(&mut hymba(["inspect", &demo(), "-m", &demo()]), 2, &["--model"]);
}
