//! `hymba chat` and `run` at a pseudo-terminal.
#![cfg(unix)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    ptr,
    time::Duration,
};

use common::{hymba, runner, session_header, unless_emulated};
use expectrl::{
    Expect, Session,
    process::unix::{Signal, WaitStatus},
    session::OsSession,
};
use hymba::format::gguf::Gguf;

/// Start of a prompt (bracketed paste is enabled); earlier input is discarded.
const PROMPT: &str = "\x1b[?2004h";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";
const ENTER: &str = "\r";

/// A chat at a terminal.
struct Chat {
    session: OsSession,
    /// Output so far.
    seen: String,
}

impl Chat {
    /// Starts a chat whose history file is in `home`.
    fn new(home: &Path, size: (u16, u16), args: &[&str]) -> Self {
        let mut command = hymba(["chat"]);
        command
            .args(args)
            .stdin(Stdio::inherit())
            .env("XDG_DATA_HOME", home)
            .env("HOME", home)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR");
        let mut session = Session::spawn(command).unwrap();
        session.set_expect_timeout(Some(Duration::from_secs(unless_emulated(60, 400))));
        session.get_process_mut().set_window_size(size.0, size.1).unwrap();
        Self { session, seen: String::new() }
    }

    fn send(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
    }

    /// Waits for `text` and returns the output before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        match self.session.expect(text) {
            Ok(found) => {
                let before = String::from_utf8_lossy(found.before()).into_owned();
                self.seen += &before;
                self.seen += text;
                plain(&before)
            }
            Err(e) => {
                let mut rest = vec![0; 1 << 20];
                let length = self.session.try_read(&mut rest).unwrap_or(0);
                self.seen += &String::from_utf8_lossy(&rest[..length]);
                panic!("no `{text}` ({e}); the output is\n{}", plain(&self.seen));
            }
        }
    }

    /// Sends a message and returns the reply.
    #[track_caller]
    fn ask(&mut self, message: &str) -> String {
        self.send(message);
        self.send(ENTER);
        self.reply()
    }

    /// [`Chat::ask`] after `lines` lines of input that have no reply.
    #[track_caller]
    fn ask_after(&mut self, message: &str, lines: usize) -> String {
        for _ in 0..lines {
            self.expect("\x1b[?2004l");
        }
        self.ask(message)
    }

    /// Returns the reply: the output between the input line and the summary after the reply.
    #[track_caller]
    fn reply(&mut self) -> String {
        self.expect("\x1b[?2004l");
        let reply = self.expect(" tok/s");
        let lines: Vec<_> = reply.lines().collect();
        lines[..lines.len() - 1].join("\n").trim().to_owned()
    }

    /// Sends Ctrl-C at the prompt and waits for the next prompt, since earlier input would be discarded.
    #[track_caller]
    fn interrupt(&mut self) -> String {
        self.send(CTRL_C);
        self.expect("\x1b[?2004l");
        self.expect(PROMPT)
    }

    /// Waits for the end of the process with this exit code.
    #[track_caller]
    fn expect_exit(&mut self, code: i32) {
        let end = self.session.expect(expectrl::Eof);
        assert!(end.is_ok());
        let status = self.session.get_process_mut().wait().unwrap();
        assert!(matches!(status, WaitStatus::Exited(_, c) if c == code), "{status:?}");
    }
}

/// Returns the text without escape sequences.
fn plain(text: &str) -> String {
    let escape = regex::Regex::new("\x1b\\[[0-9;?]*[a-zA-Z]").unwrap();
    escape.replace_all(text, "").replace('\r', "")
}

#[test]
fn commands_work_in_a_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk").display().to_string();
    let args = ["--seed", "3", "-n", "20", "--color", "never"];
    let mut p = Chat::new(home.path(), (80, 24), &args);
    p.expect("/help lists the commands");
    p.send("/help\r");
    p.expect("switch to a branch");
    let hello = p.ask("Hello");
    let story = p.ask("Tell me a story about a fox.");
    assert!(!hello.is_empty() && !story.is_empty() && hello != story);
    // the same seed gives the same reply, the next draw another one
    p.send("/set seed 9\r");
    let first = p.ask_after("/regen", 1);
    assert_ne!(first, story);
    p.send("/set seed 9\r");
    assert_eq!(p.ask_after("/regen", 1), first);
    assert_ne!(p.ask("/regen"), first);
    // undo, branch, and switch back
    p.send("/undo\r");
    p.expect("undid 1 turn");
    p.send("/branch wolf\r");
    p.expect("created and switched to branch wolf");
    p.ask("Tell me a story about a wolf.");
    p.send("/switch main\r");
    p.expect("switched to branch main, 1 turn");
    p.send("/switch wo\t\r");
    p.expect("switched to branch wolf, 2 turns");
    // edit the message: "wolf." becomes "bear!"
    p.send("/edit\r");
    p.expect("> Tell me a story about a wolf.");
    let bear = p.ask_after("\x7f\x7f\x7f\x7f\x7fbear!", 0);
    p.send(&format!("/save {file}\r"));
    p.expect("saved ");
    p.send("/show\r");
    let shown = p.expect("settings");
    for part in [
        unless_emulated("model     the built-in demo", "first-layers.gguf"),
        "branch    wolf (of main, wolf), 2 turns",
        " tokens used",
        "overflow stop",
        "(256 tokens)",
        "speed",
    ] {
        assert!(shown.contains(part), "`{part}` is missing in\n{shown}");
    }
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);

    // another process continues, with the history of input
    let mut p = Chat::new(home.path(), (80, 24), &args);
    p.send(&format!("/load {}\t\r", &file[..file.len() - 2]));
    p.expect("loaded 2 turns from ");
    p.send("/edit\r");
    p.expect("> Tell me a story about a bear!");
    p.interrupt();
    p.ask("And then?");
    p.send("/undo\r");
    p.expect("undid 1 turn");
    p.send(&format!("{UP}{UP}{UP}{UP}"));
    p.expect("/load ");
    p.interrupt();
    p.send("\x12a wolf"); // Ctrl-R
    p.expect("Tell me a story about a wolf.");
    p.interrupt();
    p.send("/exit\r");
    p.expect_exit(0);
    assert!(!bear.is_empty());
}

#[test]
fn ctrl_c_stops_the_reply_then_the_chat() {
    let home = tempfile::tempdir().unwrap();
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "-c", "20000", "--temp", "2"]);
    p.expect("Ctrl-D exits");
    // the reply stops and stays in the conversation
    p.send("Tell me a long story.\r");
    p.expect("\x1b[?2004l");
    p.expect(" ");
    p.send(CTRL_C);
    p.expect("[stopped · ");
    p.send("/show\r");
    p.expect("(of main), 1 turn");
    // the first Ctrl-C discards the input, the second one hints, a command in between resets that
    let hint = "press Ctrl-C again";
    p.send("discarded");
    p.expect("discarded");
    assert!(!p.interrupt().contains(hint));
    assert!(p.interrupt().contains(hint));
    p.send("/help\r");
    p.expect(PROMPT);
    assert!(p.interrupt().contains(hint));
    p.send(CTRL_C);
    p.expect_exit(130);
    // SIGTERM ends it at the prompt
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never"]);
    p.expect("> ");
    std::thread::sleep(Duration::from_millis(200));
    p.session.get_process_mut().signal(Signal::SIGTERM).unwrap();
    p.expect_exit(143);
}

/// SIGTERM while it waits for input: --save-on-exit applies.
#[test]
fn sigterm_at_the_prompt_saves_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk");
    let file = file.to_str().unwrap();
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "-n", "3", "--save-on-exit", file]);
    p.ask("Hello");
    p.expect(PROMPT);
    p.send("half a li");
    p.expect("half a li");
    p.session.get_process_mut().signal(Signal::SIGTERM).unwrap();
    p.expect("saved ");
    p.expect_exit(143);
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "--resume", file]);
    p.expect("loaded 1 turn from ");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

/// The terminal is closed while the chat waits for input, or during a reply, whose generated part is saved too.
#[test]
fn closing_the_terminal_saves_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    for (name, message, more) in [("waiting", "Hello\r", "3"), ("replying", "Tell me a story\r", "100000")] {
        let file = home.path().join(name);
        let (terminal, mut child) =
            on_a_terminal(hymba(["chat", "--color", "never", "-c", "200000", "-n", more]).args([
                "--temp".as_ref(),
                "2".as_ref(),
                "--save-on-exit".as_ref(),
                file.as_os_str(),
            ]));
        let mut terminal = fs::File::from(terminal);
        let mut seen = String::new();
        let mut wait_for = |terminal: &mut fs::File, pattern: &str| {
            while !seen.contains(pattern) {
                let mut buffer = [0; 4096];
                let count = terminal.read(&mut buffer).unwrap();
                seen += &String::from_utf8_lossy(&buffer[..count]);
            }
            seen = seen.split_once(pattern).unwrap().1.into();
        };
        wait_for(&mut terminal, PROMPT);
        terminal.write_all(message.as_bytes()).unwrap();
        let patterns = if name == "waiting" { ["tok/s", PROMPT] } else { ["\x1b[?2004l", " "] };
        patterns.into_iter().for_each(|pattern| wait_for(&mut terminal, pattern));
        drop(terminal);
        child.wait().unwrap();
        let turns = &session_header(&file)["more"]["chat"]["branches"]["main"]["turns"];
        assert_eq!(turns.as_array().unwrap().len(), 1, "{name}");
        assert_eq!(turns[0]["user"], message.trim_end());
        assert!(!turns[0]["reply"].as_str().unwrap().is_empty(), "{name}");
    }
}

/// SIGTERM during a reply ends the chat, whereas Ctrl-C only stops the reply.
#[test]
fn sigterm_during_a_reply_saves_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk");
    let (terminal, mut child) =
        on_a_terminal(hymba(["chat", "--color", "never", "-c", "200000", "--temp", "2", "--save-on-exit"]).arg(&file));
    let mut terminal = fs::File::from(terminal);
    terminal.write_all(b"Tell me a story\r").unwrap();
    let mut seen = String::new();
    while !seen.split_once("\x1b[?2004l").is_some_and(|(_, reply)| reply.contains(' ')) {
        let mut buffer = [0; 4096];
        let count = terminal.read(&mut buffer).unwrap();
        seen += &String::from_utf8_lossy(&buffer[..count]);
    }
    // SAFETY: the process is a child that has not been waited for.
    unsafe { libc::kill(child.id() as _, libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    let turns = &session_header(&file)["more"]["chat"]["branches"]["main"]["turns"];
    assert_eq!(turns.as_array().unwrap().len(), 1);
}

/// Starts `command` as the session leader of a new terminal, and returns the terminal's controlling end.
fn on_a_terminal(command: &mut Command) -> (OwnedFd, Child) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both file descriptors are written; the optional arguments are null.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) };
    assert_eq!(opened, 0);
    // SAFETY: both descriptors are open and owned here alone.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // SAFETY: `ours` is open; only its flag changes.
    unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    let end = || Stdio::from(theirs.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY as _, 0);
            Ok(())
        })
    };
    let child = command.spawn().unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (ours, child)
}

/// Invalid UTF-8 does not end the conversation, and the rest of a paste that contains it is not executed as commands.
#[test]
fn invalid_utf8_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "-n", "3"]);
    p.expect(PROMPT);
    p.session.send(b"caf\xe9 ").unwrap();
    p.expect("dropped input that is not valid UTF-8");
    p.expect(PROMPT);
    p.session.send(b"\x1b[200~caf\xe9 au lait\r/branch pasted\r\x1b[201~").unwrap();
    p.expect("dropped input that is not valid UTF-8");
    p.expect(PROMPT);
    p.ask("Hello");
    p.expect(PROMPT);
    p.send("/show\r");
    p.expect("main (of main), 1 turn");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

/// Several pasted lines are a message, even if they look like commands.
#[test]
fn pasted_lines_are_not_commands() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk");
    fs::write(&file, "mine").unwrap();
    let saves = format!("/save --force {}\n//and more \\\nof it", file.display());
    let mut p = Chat::new(home.path(), (300, 24), &["--color", "never", "-n", "3"]);
    p.expect(PROMPT);
    p.send(&format!("\x1b[200~{saves}\x1b[201~"));
    p.send(ENTER);
    p.reply();
    p.expect(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // it stays a message when it is edited; a continued line can be a command
    p.send("/edit\r");
    p.expect("of it");
    p.send(ENTER);
    p.reply();
    p.expect(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    p.send("/system Be brief.\\\rVery.\r");
    p.expect(PROMPT);
    // only /save --force replaces a file of another kind
    p.send(&format!("/save {}\r", file.display()));
    p.expect("was not replaced; name another file, or replace it with /save --force");
    p.expect(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    p.send(&format!("/save --force {}\r", file.display()));
    p.expect("saved ");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
    let main = &session_header(&file)["more"]["chat"]["branches"]["main"];
    assert_eq!((&main["system"], &main["turns"][0]["user"]), (&"Be brief.\nVery.".into(), &saves.into()));
    assert_eq!(main["turns"].as_array().unwrap().len(), 1);
}

#[test]
fn a_paste_of_two_thousand_lines_is_one_message() {
    let count = unless_emulated(2000, 100);
    let home = tempfile::tempdir().unwrap();
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "-c", "16000", "-n", "5"]);
    p.expect("Ctrl-D exits");
    let lines: String = (0..count).map(|i| format!("{}\n", i % 10)).collect();
    p.send(&format!("\x1b[200~{lines}\x1b[201~"));
    p.send(ENTER);
    p.reply();
    p.send("/show\r");
    p.expect("(of main), 1 turn");
    let used: usize = p.expect(" of 16,000 tokens").rsplit(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert!(used >= 2 * count, "{used}");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

#[test]
fn unicode_and_multiline_input_work_in_a_narrow_terminal() {
    let home = tempfile::tempdir().unwrap();
    // a high temperature gives incomplete UTF-8 sequences
    let hot = ["--temp", "50", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "1", "-n", "60"];
    let mut p = Chat::new(home.path(), (40, 10), &[&["--color", "never"], &hot[..]].concat());
    let message = "Grüße, 日本語 und 🙂🙂 — das ist viel länger als vierzig Spalten, nicht wahr?";
    for _ in 0..3 {
        let reply = p.ask(message);
        assert!(reply.chars().count() > 60, "{reply}");
    }
    p.send("/edit\r");
    p.expect("nicht wahr?");
    p.interrupt();
    p.send("\"\"\"\rone\rtwo\r\"\"\"\r");
    p.reply();
    p.send("three \\\rfour\r");
    p.reply();
    p.send("/edit\r");
    p.expect("three");
    p.expect("four");
    p.interrupt();
    p.send(CTRL_D);
    p.expect_exit(0);
}

#[test]
fn the_color_flag_is_respected() {
    let home = tempfile::tempdir().unwrap();
    for (more, colors) in [(&["--color", "never"][..], false), (&[], true)] {
        let mut p = Chat::new(home.path(), (80, 24), &[&["-n", "3"], more].concat());
        p.ask("Hello");
        p.expect(PROMPT);
        p.send(CTRL_D);
        p.expect_exit(0);
        assert_eq!(p.seen.contains("\x1b[2m"), colors);
    }
}

#[test]
fn read_attaches_a_file_to_the_next_message() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a file.txt");
    fs::write(&file, "All about foxes.\n").unwrap();
    let mut p = Chat::new(home.path(), (80, 24), &["--color", "never", "-n", "5"]);
    p.send(&format!("/read {}/a\t\r", home.path().display()));
    p.expect("attached ");
    p.ask("What is this about?");
    p.send("/edit\r");
    p.expect("> All about foxes.");
    p.expect("What is this about?");
    p.interrupt();
    p.send("/hlep\r");
    p.expect("unknown command /hlep");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

/// Control characters in arguments and prompts are escaped at a terminal, and unchanged in a pipe.
#[test]
fn control_characters_are_escaped_at_a_terminal() {
    let name = "no\u{9b}31m\x1b[31msuch";
    let shown = |args: &[&str]| {
        let mut command = hymba(args);
        command.stdin(Stdio::inherit());
        let mut session = Session::spawn(command).unwrap();
        session.set_expect_timeout(Some(Duration::from_secs(unless_emulated(20, 400))));
        String::from_utf8(session.expect(expectrl::Eof).unwrap().as_bytes().to_vec()).unwrap()
    };
    let text = ["run", "-q", "-n", "0", "a\x1b[31mb"];
    for (args, escaped) in [
        (&["run", "-q", "Once", "-m", name][..], r"no\x9b31m\x1b[31msuch"),
        (&["inspect", name], r"no\x9b31m\x1b[31msuch"),
        (&["quantize", "a", "b", name], r"no\x9b31m"), // the parser strips colors
        (&text, r"a\x1b[31mb"),
    ] {
        let shown = shown(args);
        assert!(shown.contains(escaped) && !shown.contains(['\x1b', '\u{9b}']), "{shown:?}");
    }
    let piped = hymba(text).output().unwrap();
    assert!(String::from_utf8(piped.stdout).unwrap().contains("a\x1b[31mb"));
}

/// A model whose tokens decode to escape sequences, with styled and with plain output.
#[test]
fn control_characters_in_replies_are_escaped() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("red.gguf");
    let demo = Gguf::open(Path::new(&common::demo_of_any_depth())).unwrap();
    let mut metadata = demo.metadata.clone();
    const JSON: &str = "tokenizer.huggingface.json";
    let mut tokenizer: serde_json::Value = serde_json::from_str(metadata.string(JSON).unwrap()).unwrap();
    let red = serde_json::json!({"type": "Replace", "pattern": {"String": "e"}, "content": "e\u{1b}[31m\u{9b}2J"});
    tokenizer["decoder"]["decoders"].as_array_mut().unwrap().push(red);
    metadata.set(JSON, tokenizer.to_string());
    common::write_with_metadata(&demo, metadata, &file);
    let file = file.to_str().unwrap();
    for color in ["auto", "never"] {
        let mut p = Chat::new(home.path(), (80, 24), &["-m", file, "--seed", "3", "-n", "20", "--color", color]);
        p.expect(PROMPT);
        p.send("Tell me a story.\r");
        let reply = p.expect(" tok/s");
        assert!(reply.contains(r"e\x1b[31m\x9b2J"), "{color}: {reply:?}");
        assert!(!p.seen.contains("e\x1b[31m") && !p.seen.contains('\u{9b}'), "{color}: {:?}", p.seen);
        p.expect(PROMPT);
        p.send(CTRL_D);
        p.expect_exit(0);
    }
    let piped =
        hymba(["chat", "-q", "-m", file, "--seed", "3", "-n", "20", "-st", "Tell me a story."]).output().unwrap();
    assert!(String::from_utf8(piped.stdout).unwrap().contains("e\x1b[31m"));
}

/// Lines wrap between words at the terminal's width, in streamed replies and in other output.
#[test]
fn replies_wrap_at_the_terminal_width() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--color", "never", "-n", "80", "--seed", "1", "--temp", "0"];
    let story = "Tell me a short story about a fox";
    let mut p = Chat::new(home.path(), (40, 24), &args);
    let narrow = p.ask(story);
    assert!(narrow.lines().count() > 3 && narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
    p.expect(PROMPT);
    p.send("/help\r");
    let help = p.expect("the history.");
    assert!(help.lines().all(|line| line.chars().count() <= 40), "{help}");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
    let mut p = Chat::new(home.path(), (400, 24), &args);
    let wide = p.ask(story);
    assert_eq!(narrow.replace('\n', " "), wide.replace('\n', " "), "no word is lost");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

#[test]
fn a_resumed_session_shows_the_last_turns() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk").display().to_string();
    let args = ["--color", "never", "-n", "6", "--session", &file];
    let mut p = Chat::new(home.path(), (80, 24), &args);
    for message in ["One", "Two", "Three"] {
        p.ask(message);
        p.expect(PROMPT);
    }
    p.send(CTRL_D);
    p.expect("saved ");
    p.expect_exit(0);
    let mut p = Chat::new(home.path(), (80, 24), &args);
    let before = p.expect("loaded 3 turns from ");
    assert!(before.contains("1 turn earlier; /history shows them"), "{before}");
    assert!(before.contains("> Two\n") && before.contains("> Three\n") && !before.contains("> One"), "{before}");
    p.expect(PROMPT);
    p.send("/history\r");
    p.expect("> One");
    p.expect(PROMPT);
    p.send("/histroy\r");
    p.expect("did you mean /history?");
    p.expect(PROMPT);
    // paths that start with ~ are completed
    fs::write(home.path().join("a letter.txt"), "Dear fox").unwrap();
    p.send("/read ~/a\t\r");
    p.expect("(8 characters)");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}

/// TERM=dumb gets no escape sequences.
#[test]
fn a_dumb_terminal_gets_no_escape_sequences() {
    let home = tempfile::tempdir().unwrap();
    let start = |args: &[&str]| {
        let mut command = hymba(args);
        command.stdin(Stdio::inherit()).env("TERM", "dumb").env("HOME", home.path()).env("XDG_DATA_HOME", home.path());
        let mut session = Session::spawn(command).unwrap();
        session.set_expect_timeout(Some(Duration::from_secs(unless_emulated(20, 400))));
        session
    };
    let mut chat = start(&["chat", "-n", "5"]);
    let mut seen = Vec::new();
    for (pattern, input) in [("> ", "Hello\r"), (" tok/s", ""), ("> ", "/exit\r")] {
        let found = chat.expect(pattern).unwrap();
        seen.extend_from_slice(found.before());
        chat.send(input).unwrap();
    }
    seen.extend_from_slice(chat.expect(expectrl::Eof).unwrap().as_bytes());
    let mut run = start(&["run", "-n", "5", "Once upon a time"]);
    seen.extend_from_slice(run.expect(expectrl::Eof).unwrap().as_bytes());
    seen.extend_from_slice(start(&["run", "--nonsense"]).expect(expectrl::Eof).unwrap().as_bytes());
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("--nonsense") && !seen.contains('\x1b'), "{seen:?}");
    assert!(
        runner().is_some() || seen.contains("The demo is a toy model with"),
        "the note about the demo is missing: {seen}"
    );
}

/// At a terminal, generation stops at a default length and reports that.
#[test]
fn run_at_a_terminal_stops_after_512_tokens() {
    if runner().is_some() {
        eprintln!("SKIPPED: under emulation 512 tokens take minutes");
        return;
    }
    let mut command = hymba(["run", "--ignore-eos", "-c", "700", "--seed", "1", "Once upon a time"]);
    command.stdin(Stdio::inherit());
    let mut session = Session::spawn(command).unwrap();
    session.set_expect_timeout(Some(Duration::from_secs(unless_emulated(60, 800))));
    let seen = String::from_utf8(session.expect(expectrl::Eof).unwrap().as_bytes().to_vec()).unwrap();
    assert!(seen.contains("stopped after 512 tokens"), "{seen}");
}

/// Question, call, result, answer: the result is typed, or printed by a confirmed program; Ctrl-C ends the program.
#[test]
fn tool_results_are_typed_or_come_from_a_program() {
    use std::os::unix::fs::PermissionsExt;

    if runner().is_some() {
        return; // only the whole demo calls tools, not its first layers
    }
    const QUESTION: &str = "What is the weather like in Oslo?";
    const CALL: &str = "→ get_weather {\"city\": \"Oslo\"}";
    const RESULT: &str = "{\"temperature\": 21, \"condition\": \"sunny\"}";
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    let list = r#"[{"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]"#;
    fs::write(path("tools.json"), list).unwrap();
    let program = |name: &str, script: &str| {
        fs::write(path(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
        path(name)
    };
    let tools = path("tools.json");
    let args = ["--color", "never", "--temp", "0", "-n", "60", "--tools", &tools];

    let mut p = Chat::new(home.path(), (80, 24), &args);
    let called = p.ask(QUESTION);
    assert!(called.ends_with(CALL) && !called.contains("toolcall"), "{called}");
    p.expect("/tool RESULT answers the call");
    let answer = p.ask(&format!("/tool {RESULT}"));
    assert!(answer.contains("21"), "{answer}");
    p.send("/tool 5\r");
    p.expect("the last reply does not call a tool");
    p.send("/history\r");
    let history = p.expect("21 degrees");
    assert!(history.contains(CALL) && history.contains(RESULT), "{history}");
    p.send("/undo\r");
    p.expect("undid 1 turn");
    p.send("/show\r");
    let shown = p.expect("settings");
    assert!(shown.contains("(of main), 0 turns") && shown.contains("tools     get_weather"), "{shown}");
    p.send(CTRL_D);
    p.expect_exit(0);

    let answers = program("answers", &format!("cat > '{}'; echo '{RESULT}'", path("call")));
    let mut p = Chat::new(home.path(), (80, 24), &[&args[..], &["--tool-command", &answers]].concat());
    p.ask(QUESTION);
    p.expect("[y/N]");
    p.send("n\r");
    p.expect("/tool RESULT answers the call");
    assert!(!Path::new(&path("call")).exists());
    p.expect(PROMPT);
    p.send("/regen\r");
    p.expect("[y/N]");
    p.send("y\r");
    let answer = p.expect(" tok/s");
    assert!(answer.contains("21"), "{answer}");
    let call = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n";
    assert_eq!(fs::read_to_string(path("call")).unwrap(), call);
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);

    let waits = program("waits", &format!("touch '{}'; sleep 1000", path("started")));
    let mut p = Chat::new(home.path(), (80, 24), &[&args[..], &["--tool-yes", "--tool-command", &waits]].concat());
    p.ask(QUESTION);
    while !Path::new(&path("started")).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    p.send(CTRL_C);
    p.expect("stopped before the reply began");
    p.send("/show\r");
    p.expect("(of main), 1 turn");
    p.expect(PROMPT);
    p.send(CTRL_D);
    p.expect_exit(0);
}
