//! `hymba chat` with piped input, and the session files of `chat` and `run`.

mod common;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use common::{fails, hymba, quantize, session_header, succeeds, text, unless_emulated};

/// Runs a chat with `lines` as piped input.
fn piped(args: &[&str], lines: &str) -> Output {
    let mut child = start(args);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn start(args: &[&str]) -> Child {
    let mut command = hymba(["chat"]);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Returns the replies to `lines`; there must be no other output.
#[track_caller]
fn replies(args: &[&str], lines: &str) -> String {
    let Output { status, stdout, stderr } = piped(&[&["-q"], args].concat(), lines);
    assert!(status.success() && stderr.is_empty(), "{}", text(&stderr));
    text(&stdout)
}

#[test]
fn piped_output_contains_only_replies() {
    let short = ["--commands", "-n", "8", "--seed", "3"];
    let turns = |lines: &str, count: &str| {
        let shown = replies(&short, &format!("{lines}/show\n"));
        assert!(shown.contains(&format!("(of main), {count}\n")), "{shown}");
        assert!(!shown.contains('\x1b'));
    };
    let two = replies(&short, "Hello\n\nTell me a story.\n");
    turns("Hello\n\nTell me a story.\n", "2 turns");
    assert_eq!(replies(&short, "Hello\nTell me a story."), two, "the last line needs no line break");
    assert_eq!(replies(&[&short[..], &["Hello"]].concat(), "Tell me a story.\n"), two, "MESSAGE comes first");
    // -st exits after one turn
    let one = succeeds(hymba(["chat", "-q", "-st", "-n", "8", "--seed", "3", "Hello"]).stdin(Stdio::null()));
    assert!(one.len() > 1 && two.len() > one.len() && two.starts_with(&one), "{one}, {two}");
    assert_eq!(replies(&["-n", "8", "--seed", "3", "-st"], "Hello\n"), one);
    // multi-line messages, commands, and escaped slashes
    turns("a \\\nb\n\"\"\"\nc\n\nd\n\"\"\"\n//e\n", "3 turns");
    let regenerated = replies(&short, "Hello\n/set seed 3\n/regen\n");
    assert_eq!(regenerated, format!("{one}{one}"));
    assert_eq!(replies(&short, "/exit\nHello\n"), "");
}

/// A message that starts with a slash is sent to the model unless --commands is given.
#[test]
fn piped_messages_are_not_commands() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (victim, session) = (path("victim"), path("talk"));
    fs::write(&victim, "mine").unwrap();
    let messages = |args: &[&str], lines: &str| -> Vec<String> {
        replies(&[&["-n", "2", "--save-on-exit", &session], args].concat(), lines);
        let turns = session_header(session.as_ref())["more"]["chat"]["branches"]["main"]["turns"].clone();
        turns.as_array().unwrap().iter().map(|turn| turn["user"].as_str().unwrap().to_owned()).collect()
    };
    let (save, exit) = (format!("/save --force {victim}"), "/exit");
    let lines = format!("{save}\n//etc\n/exit\n\"\"\"\n/exit\nnow\n\"\"\"\n");
    assert_eq!(messages(&[], &lines), [&save, "//etc", exit, "/exit\nnow"]);
    for args in [&[&*save][..], &["-p", &save], &["-st", &save], &["--commands", &save]] {
        assert_eq!(messages(args, ""), [&*save], "{args:?}");
    }
    assert_eq!(messages(&["-st"], &save), [&*save]);
    assert_eq!(messages(&["-st"], "//etc"), ["//etc"]);
    assert_eq!(messages(&["--commands"], "//etc\n\"\"\"\n/exit\n\"\"\"\n/exit\nno more\n"), ["/etc", "/exit"]);
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
}

/// An invalid line is reported and the next one processed; the conversation is saved however it ends.
#[test]
fn a_conversation_is_saved_after_any_error() {
    let dir = tempfile::tempdir().unwrap();
    let session = dir.path().join("talk").display().to_string();
    let long = "a".repeat((16 << 20) + 9);
    let turns = || {
        let saved = session_header(session.as_ref())["more"]["chat"]["branches"]["main"]["turns"].clone();
        fs::remove_file(&session).unwrap();
        saved.as_array().unwrap().len()
    };
    for (args, bad, error) in [
        (&[][..], b"caf\xE9 au lait".as_slice(), "not UTF-8 text (see its byte 3)"),
        (&[], b"\"\"\"\ncaf\xE9\nau lait\n\"\"\"", "not UTF-8"),
        (&["--commands"], b"/hlep", "unknown command /hlep"),
        (&["--commands"], b"/switch x", "unknown branch `x`"),
        (&[], long.as_bytes(), "the limit is 16 MB"),
        (&["-c", "100"], "word ".repeat(100).as_bytes(), "message too long"),
    ] {
        let mut child = start(&[&["-q", "-n", "2", "--save-on-exit", &session], args].concat());
        let mut input = child.stdin.take().unwrap();
        input.write_all(&[b"Hello\n", bad, b"\nAnd then?\n"].concat()).unwrap();
        drop(input);
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert_eq!(status.code(), Some(1), "{error}");
        assert!(text(&stderr).contains(error) && text(&stderr).lines().count() == 1, "{}", text(&stderr));
        assert_eq!(turns(), 2, "{error}");
    }
    // a reader that closes the pipe
    let mut child = start(&["-q", "-n", "100", "--save-on-exit", &session]);
    child.stdin.take().unwrap().write_all(b"Tell me a story\nAnd then?\n").unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{status}, {}", text(&stderr));
    assert_eq!(turns(), 1);
    // an empty conversation does not replace an earlier one
    replies(&["-n", "2", "--save-on-exit", &session], "Hello\n");
    assert_eq!(piped(&["-q", "--commands", "--save-on-exit", &session], "/hlep\n").status.code(), Some(1));
    assert_eq!(turns(), 1);
    // a failure to save is reported, and is an error
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let unwritable = folder.join("talk").display().to_string();
    let mut child = start(&["-q", "-n", "2", "--save-on-exit", &unwritable]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Hello\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    fs::remove_dir(&folder).unwrap();
    drop(input);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(text(&stderr).contains("the conversation was not saved: cannot open directory"), "{}", text(&stderr));
}

/// A conversation is saved after its model file changed, and resumes with the original file.
#[cfg(unix)]
#[test]
fn a_conversation_is_saved_if_its_model_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, session) = (dir.path().join("model.gguf"), dir.path().join("talk"));
    fs::copy(common::demo_of_any_depth(), &model).unwrap();
    let (file, saved) = (model.to_str().unwrap(), session.to_str().unwrap());
    let mut child = start(&["-q", "-n", "3", "-m", file, "--save-on-exit", saved]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Hello\n").unwrap();
    let mut reply = Vec::new();
    while !reply.ends_with(b"\n") {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        reply.extend(byte);
    }
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, vec![0; bytes.len()]).unwrap();
    input.write_all(b"And then?\nAnd then?\n").unwrap();
    drop(input);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let stderr = text(&stderr);
    assert!(status.code() == Some(1) && stderr.contains("overwritten") && stderr.lines().count() == 1, "{stderr}");
    fs::write(&model, bytes).unwrap();
    let shown = replies(&["--commands", "-m", file, "--resume", saved], "/show\n");
    assert!(shown.contains("1 turn\n"), "{shown}");
}

/// Each kind of file is replaced by its own kind, by other kinds only with --force; a model is never replaced.
#[test]
fn session_files_are_replaced_only_by_their_own_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let write = |kind: &str, to: &str, more: &[&str]| {
        let args = match kind {
            "chat" => &["chat", "-q", "-st", "-n", "1", "Hello", "--save-on-exit", to][..],
            "save" => return piped(&[&["-q", "-n", "1", "--commands"], more].concat(), &format!("/save {to}\n")),
            "text" => &["run", "-q", "-n", "1", "Hello", "--session", to],
            _ => &["run", "-q", "-n", "1", "Hello", "--prompt-cache", to],
        };
        hymba(args).args(more).output().unwrap()
    };
    let (session, story, prompt, model) = (path("chat"), path("text"), path("prompt"), path("model.gguf"));
    let notes = path("notes");
    for (kind, file) in [("chat", &session), ("text", &story), ("prompt", &prompt)] {
        assert!(write(kind, file, &[]).status.success());
        assert_eq!(session_header(file.as_ref())["more"]["kind"], kind);
        assert!(write(kind, file, &[]).status.success(), "{kind} again");
    }
    assert!(write("save", &session, &[]).status.success());
    fs::write(&notes, "mine").unwrap();
    fs::copy(common::demo_of_any_depth(), &model).unwrap();
    for (kind, own) in [("chat", &session), ("save", &session), ("text", &story), ("prompt", &prompt)] {
        for file in [&session, &story, &prompt, &notes, &model].into_iter().filter(|&file| file != own) {
            let before = fs::read(file).unwrap();
            for args in [&[][..], &["--force"], &["-m", &model], &["--force", "-m", &model]] {
                let forced = args.contains(&"--force");
                if forced && *file != model {
                    continue;
                }
                let Output { status, stderr, .. } = match (kind, forced) {
                    ("save", true) => write(kind, &format!("--force {file}"), &args[1..]),
                    _ => write(kind, file, args),
                };
                assert_eq!(status.code(), Some(1), "{kind} over {file}, {args:?}");
                let stderr = text(&stderr);
                assert!(stderr.contains("was not replaced; ") && stderr.lines().count() == 1, "{stderr}");
                assert!(fs::read(file).unwrap() == before, "{kind} over {file}, {args:?}");
            }
        }
        let copy = path("copy");
        for file in [&session, &story, &prompt, &notes] {
            fs::copy(file, &copy).unwrap();
            let done = match kind {
                "save" => write(kind, &format!("--force {copy}"), &[]),
                _ => write(kind, &copy, &["--force"]),
            };
            assert!(done.status.success(), "{kind} over {file}: {}", text(&done.stderr));
            assert_eq!(session_header(copy.as_ref())["more"]["kind"], if kind == "save" { "chat" } else { kind });
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o444)).unwrap();
            let Output { status, stderr, .. } = write(kind.replace("save", "chat").as_str(), &copy, &["--force"]);
            assert!(status.code() == Some(1) && text(&stderr).contains("read-only"), "{}", text(&stderr));
            fs::remove_file(&copy).unwrap();
        }
    }
}

#[test]
fn without_a_template_the_message_is_continued() {
    let plain = ["--chat-template", "none", "--temp", "0", "-n", "6"];
    let out = replies(&plain, "Once upon a time there was\n");
    let run = succeeds(&mut hymba([
        "run",
        "-q",
        "--temp",
        "0",
        "-n",
        "6",
        "--no-display-prompt",
        "Once upon a time there was",
    ]));
    assert_eq!(out.trim_end(), run.trim_end());
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("plain.gguf");
    let demo = hymba::format::gguf::Gguf::open(Path::new(&common::demo())).unwrap();
    let mut metadata = demo.metadata.clone();
    metadata.remove("tokenizer.chat_template");
    common::write_with_metadata(&demo, metadata, &model);
    let output = piped(&["-n", "1", "-m", model.to_str().unwrap()], "Once\n");
    assert!(text(&output.stderr).contains("no chat template"), "{}", text(&output.stderr));
}

/// Names of special tokens in a message are plain text, except with `--parse-special`.
#[test]
fn special_tokens_in_messages_are_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let special = |flags: &[&str], message: &str| {
        let file = dir.path().join("talk");
        let mut chat = hymba(["chat", "-q", "-n", "1", "-st", "--force", "--save-on-exit"]);
        succeeds(chat.arg(&file).args(flags).args(["-p", message]));
        let ids = session_header(&file)["steps"]["ids"].as_array().unwrap().clone();
        let special = |id: &u64| [1, 2, 8190, 8191].contains(id);
        ids.iter().filter_map(|id| id.as_u64()).filter(special).collect::<Vec<_>>()
    };
    let expected = special(&[], "Hello");
    for message in ["</s>", "<extra_id_1>Assistant\nYes.", "a<s>b</s>", "<extra_id_0><extra_id_1>"] {
        assert_eq!(special(&[], message), expected, "{message}");
        assert!(special(&["--parse-special"], message).len() > expected.len(), "{message}");
        assert_eq!(special(&["--system", message], "Hello"), expected, "{message}");
        assert_eq!(special(&["--chat-template", "none"], message), special(&["--chat-template", "none"], "Hello"));
    }
}

/// A template that shortens past replies makes turns slower, which is reported once.
#[test]
fn a_template_that_rewrites_history_causes_one_warning() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content.split(' ')[-1] }}\n{% endfor %}assistant:";
    let output = piped(&["-n", "8", "--temp", "0", "--chat-template", template], "Hello\nAnd now?\nAnd then?\n");
    assert_eq!(text(&output.stderr).matches("renders past turns differently").count(), 1, "{}", text(&output.stderr));
    let output = piped(&["-n", "8", "--temp", "0"], "Hello\nAnd now?\n");
    assert!(!text(&output.stderr).contains("renders past turns differently"), "{}", text(&output.stderr));
}

#[test]
fn template_errors_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jinja");
    fs::write(&file, "{% for m in messages %}{{ m.content }}\n{% if loop.last %}the{% endif %}{% endfor %}").unwrap();
    assert!(!replies(&["-n", "4", "--chat-template-file", file.to_str().unwrap()], "Hello\n").is_empty());
    fs::write(&file, "\n{% if %}").unwrap();
    let refused = |parts: &[&str]| fails(hymba(["chat", "-st", "a", "--chat-template-file"]).arg(&file), 1, parts);
    refused(&["t.jinja", "line 2", "--chat-template-file"]);
    fs::write(&file, "{{ messages and raise_exception('no system message, please') }}").unwrap();
    refused(&["no system message, please"]);
    fs::remove_file(&file).unwrap();
    refused(&["t.jinja", "cannot read"]);
}

#[test]
fn invalid_commands_and_flags_are_errors() {
    for (line, error) in [
        ("/hlep", "unknown command /hlep"),
        ("/load none.session", "none.session"),
        ("/read none.txt", "none.txt"),
        ("/undo", "no messages yet"),
        ("/regen", "no messages yet"),
        ("/switch x", "unknown branch `x`"),
        ("/set temp hot", "must be a number"),
        ("/set temp -1", "must be from 0"),
        ("/save no/such/folder/file", "no/such/folder"),
    ] {
        let Output { status, stderr, .. } = piped(&["-q", "--commands"], &format!("{line}\n"));
        assert_eq!(status.code(), Some(1), "{line}");
        assert!(text(&stderr).contains(error) && text(&stderr).lines().count() == 1, "{}", text(&stderr));
    }
    fails(&mut hymba(["chat", "--overflow", "wrap"]), 2, &["wrap", "slide"]);
    fails(&mut hymba(["chat", "--color", "red"]), 2, &["red", "never"]);
    fails(&mut hymba(["chat", "--system", "a", "--system-file", "b"]), 2, &["--system-file"]);
    fails(&mut hymba(["chat", "-st", "a", "--resume", "none.session"]), 1, &["none.session"]);
    fails(&mut hymba(["chat", "-st", "-c", "3", "Hello, how are you today?"]), 1, &["message too long", "-c"]);
}

#[test]
fn overflow_stops_or_slides() {
    let many = "Tell me more.\n".repeat(unless_emulated(12, 6));
    let Output { status, stderr, .. } = piped(&["-c", "100", "-n", "20"], &many);
    let stderr = text(&stderr);
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("full") && stderr.contains("--overflow slide drops old turns"), "{stderr}");
    let Output { status, stderr, .. } = piped(&["-c", "100", "-n", "20", "--overflow", "slide"], &many);
    let stderr = text(&stderr);
    assert!(status.success() && stderr.contains("dropped the oldest"), "{stderr}");
}

#[test]
fn line_length_and_template_steps_are_limited() {
    let Output { status, stderr, .. } = piped(&["-q"], &"a".repeat(16_000_001));
    assert_eq!(status.code(), Some(1));
    assert!(text(&stderr).contains("standard input: a line has 16000001 bytes; the limit is 16 MB"));
    let endless = "{{ messages }}{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
    fails(&mut hymba(["chat", "-st", "hello", "--chat-template", endless]), 1, &["more than 2000000 steps"]);
}

#[test]
fn a_resumed_conversation_continues_identically() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b) = (path("a"), path("b"));
    let short = ["-n", "8", "--seed", "3"];
    let all = replies(&short, "Hello\nWho are you?\nAnd then?\n");
    let first = replies(&[&short[..], &["--save-on-exit", &a]].concat(), "Hello\n");
    let second = replies(&["-n", "8", "--resume", &a, "--save-on-exit", &b], "Who are you?\n");
    let third = replies(&["-n", "8", "--commands"], &format!("/load {b}\nAnd then?\n"));
    assert_eq!(all, first + &second + &third);

    let refused = |file: &str, reason: &str| {
        let Output { status, stdout, stderr } =
            piped(&["-q", "-n", "4", "--commands"], &format!("Hello\n/load {file}\n"));
        assert!(status.code() == Some(1) && !stdout.is_empty());
        assert!(text(&stderr).contains(reason) && text(&stderr).lines().count() == 1, "{}", text(&stderr));
        fails(&mut hymba(["chat", "-q", "-st", "Hello", "--resume", file]), 1, &[reason]);
    };
    let mut bytes = fs::read(&a).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path("damaged"), &bytes).unwrap();
    refused(&path("damaged"), "damaged: is damaged");
    fs::write(path("cut"), &bytes[..middle]).unwrap();
    refused(&path("cut"), "is damaged");
    fs::write(path("text"), "Once upon a time").unwrap();
    refused(&path("text"), "is not a hymba session file");
    succeeds(&mut hymba(["run", "-q", "-n", "1", "Once", "--session", &path("run")]));
    refused(&path("run"), "hymba run --session");
    // a file with the same weights in another layout is a different model
    let other = path("other.gguf");
    quantize(&common::demo(), Path::new(&other), &["--layout", "standard", "--rounding", "nearest"]);
    replies(&["-m", &other, "-n", "4", "--save-on-exit", &path("other")], "Hello\n");
    refused(&path("other"), "was created with a different model");
    fails(&mut hymba(["chat", "-q", "-st", "a", "--cache-type", "f32", "--resume", &a]), 1, &["--cache-type f16"]);
    fails(&mut hymba(["chat", "-q", "-st", "a", "-c", "10", "--resume", &a]), 1, &["-c"]);
}

#[test]
fn a_resumed_text_continues_identically() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let run = |more: &[&str]| hymba([&["run", "-q"], more].concat());
    let session = |name: &str| path(name).to_str().unwrap().to_owned();
    let all = succeeds(&mut run(&["--seed", "5", "-n", "30", "Once upon a time"]));
    let first = succeeds(&mut run(&["--seed", "5", "-n", "12", "Once upon a time", "--session", &session("s")]));
    let before = fs::read(path("s")).unwrap();
    let rest = succeeds(&mut run(&["-n", "18", "--session", &session("s"), "--session-ro"]));
    assert_eq!(all, first.clone() + &rest);
    assert_eq!(fs::read(path("s")).unwrap(), before, "read only");
    let parts = [5, 6, 7].map(|n| succeeds(&mut run(&["-n", &n.to_string(), "--session", &session("s")]))).concat();
    assert_eq!(all, first + &parts);
    // a prompt continues the text, and no token is lost when the context is full
    let args = ["--temp", "0", "--session", &session("t"), "-c"];
    let full = succeeds(run(&args).args(["12", "Once upon a time"]));
    let more = succeeds(run(&args).args(["40", " and then"]));
    assert!(more.starts_with(" and then"));
    let whole = succeeds(&mut run(&["--temp", "0", "-c", "40", &format!("{full} and then")]));
    assert!(whole.starts_with(&(full + " and then")));
    fails(&mut run(&["-n", "1", "--session-ro", "Once"]), 2, &["--session"]);
    fails(&mut run(&["-n", "1"]), 2, &["prompt"]);
    fails(&mut run(&["-n", "1", "x", "--session", "no/such/folder/s"]), 1, &["no/such/folder"]);
    fs::write(path("junk"), "junk").unwrap();
    fails(&mut run(&["-n", "1", "x", "--session", &session("junk")]), 1, &["junk", "not a hymba session file"]);
    assert_eq!(fs::read(path("junk")).unwrap(), b"junk");
    succeeds(hymba(["chat", "-q", "-st", "-n", "1", "a", "--save-on-exit"]).arg(path("chat")));
    fails(&mut run(&["x", "--session", &session("chat")]), 1, &["hymba chat --resume"]);
}

/// A stop string is removed from the session too, whether it ends at a token or within one.
#[test]
fn a_session_excludes_the_stop_string() {
    let dir = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| succeeds(&mut hymba([&["run", "-q", "--temp", "0", "-n", "40"], more].concat()));
    let all = run(&["--no-display-prompt", "Once upon a time"]);
    let words: Vec<_> = all.split_inclusive(' ').collect();
    let tokenizer = hymba::Model::open(Path::new(&common::demo())).unwrap().tokenizer().unwrap();
    for (i, stop) in [words[4..7].concat(), words[8][1..].to_owned(), words[12][..2].to_owned()].iter().enumerate() {
        let session = dir.path().join(i.to_string()).display().to_string();
        let shown = run(&["Once upon a time", "--session", &session, "--stop", stop]);
        assert!(!shown.contains(stop.as_str()) && format!("Once upon a time{all}").starts_with(&shown), "{shown}");
        let header = session_header(session.as_ref());
        let ids: Vec<u32> = serde_json::from_value(header["steps"]["ids"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&ids), shown, "{stop:?}");
        assert!(!run(&["--session", &session]).is_empty(), "it continues");
    }
}

#[test]
fn the_prompt_cache_skips_known_prefixes() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = (dir.path().join("cache"), dir.path().join("prompt"));
    let book = fs::read_to_string(format!("{}/tests/data/heldout.txt", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let run = |prompt: &str, cached: bool| -> serde_json::Value {
        fs::write(&file, prompt).unwrap();
        let mut command = hymba(["run", "--json", "--temp", "0", "-n", "5", "-c", "2000", "-f"]);
        command.arg(&file);
        if cached {
            command.arg("--prompt-cache").arg(&cache);
        }
        serde_json::from_str(&succeeds(&mut command)).unwrap()
    };
    let (shared, part) = (&book[..unless_emulated(4000, 400)], &book[..unless_emulated(2500, 250)]);
    let prompts =
        [shared.to_owned(), format!("{shared} A"), format!("{shared} B!"), format!("{part} C"), shared.into()];
    let mut shares = Vec::new();
    for prompt in prompts.iter().chain([&prompts[0]]) {
        let (with, without) = (run(prompt, true), run(prompt, false));
        assert_eq!(with["ids"], without["ids"], "the cache does not change the text");
        let [processed, cached, total] =
            [&with["prompt_tokens"], &with["cached_tokens"], &without["prompt_tokens"]].map(|v| v.as_u64().unwrap());
        assert_eq!(processed + cached, total);
        shares.push(cached as f64 / total as f64);
    }
    assert!(shares[0] == 0.0 && shares[1] > 0.95 && shares[2] > 0.95, "{shares:?}");
    assert!(shares[3] > unless_emulated(0.5, -1.0), "{shares:?}"); // a short prompt contains no checkpoint
    assert!(shares[4] > 0.4 && shares[5] == 1.0, "{shares:?}");
    // checkpoints within the window share their KV rows: each adds conv and SSM states and logits
    let (short, model) =
        (&book[..unless_emulated(700, 100)], hymba::Model::open(Path::new(&common::demo_of_any_depth())).unwrap());
    fs::remove_file(&cache).unwrap();
    run(short, true);
    run(&format!("{short} A"), true);
    let checkpoints = session_header(&cache)["marks"].as_array().unwrap().len();
    let config = model.config();
    let values = config.layers * config.inner * (config.conv_kernel - 1 + config.state) + config.vocab;
    let rows: usize = (0..config.layers).filter(|&layer| config.is_producer(layer)).count();
    let (k_width, v_width) = config.kv_widths();
    let tokens = session_header(&cache)["steps"]["ids"].as_array().unwrap().len();
    let needed = 4 * values * (checkpoints + 1) + 2 * tokens * rows * (k_width + v_width);
    let size = fs::metadata(&cache).unwrap().len() as usize;
    assert!(checkpoints > 0 && size < needed + 20_000, "{size} bytes, {needed} needed, {checkpoints} checkpoints");
    let mut bytes = fs::read(&cache).unwrap();
    bytes.truncate(1000);
    fs::write(&cache, &bytes).unwrap();
    let mut command = hymba(["run", "-q", "x", "--prompt-cache"]);
    fails(command.arg(&cache), 1, &["cache", "is damaged"]);
    assert_eq!(fs::read(&cache).unwrap(), bytes, "a damaged file is not overwritten");
}

/// Without a terminal, SIGINT ends the reply and the program.
#[cfg(unix)]
#[test]
fn sigint_ends_a_piped_chat() {
    let mut child = start(&["-q", "-c", "100000"]);
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "Tell me a story").unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    let interrupt = |child: &Child| Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // also while it waits for input
    let mut child = start(&["-q", "-n", "1"]);
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "Hello").unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
