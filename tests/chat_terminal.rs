//! `hymba chat` at a terminal: a pseudo-terminal types, and reads what a person would see.
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

/// A prompt begins: what is typed before goes unread.
const PROMPT: &str = "\x1b[?2004h";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";
const ENTER: &str = "\r";

/// A person at a terminal.
struct Person {
    session: OsSession,
    /// What was on the screen.
    seen: String,
}

impl Person {
    /// Starts a chat; what it remembers of the person is in `home`.
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

    fn types(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
    }

    /// Waits for `text` and returns what came before it.
    #[track_caller]
    fn sees(&mut self, text: &str) -> String {
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
                panic!("`{text}` does not come ({e}); what came is\n{}", plain(&self.seen));
            }
        }
    }

    /// Types a message and returns the reply. The small print after a reply tells how full the context is.
    #[track_caller]
    fn says(&mut self, message: &str) -> String {
        self.types(message);
        self.types(ENTER);
        self.reply()
    }

    /// [`Person::says`], when `lines` more lines were typed before that nothing answers.
    #[track_caller]
    fn says_after(&mut self, message: &str, lines: usize) -> String {
        for _ in 0..lines {
            self.sees("\x1b[?2004l");
        }
        self.says(message)
    }

    /// Returns the reply: what stands between the line that was typed and the small print.
    #[track_caller]
    fn reply(&mut self) -> String {
        self.sees("\x1b[?2004l");
        let reply = self.sees(" tok/s");
        let lines: Vec<_> = reply.lines().collect();
        lines[..lines.len() - 1].join("\n").trim().to_owned()
    }

    /// Ctrl-C at the prompt, and the wait for the next one: what is typed too soon after it goes with it.
    #[track_caller]
    fn interrupts(&mut self) -> String {
        self.types(CTRL_C);
        self.sees("\x1b[?2004l");
        self.sees(PROMPT)
    }

    /// Waits for the end.
    #[track_caller]
    fn leaves(&mut self, code: i32) {
        let end = self.session.expect(expectrl::Eof);
        assert!(end.is_ok());
        let status = self.session.get_process_mut().wait().unwrap();
        assert!(matches!(status, WaitStatus::Exited(_, c) if c == code), "{status:?}");
    }
}

/// Without escapes.
fn plain(text: &str) -> String {
    let escape = regex::Regex::new("\x1b\\[[0-9;?]*[a-zA-Z]").unwrap();
    escape.replace_all(text, "").replace('\r', "")
}

#[test]
fn commands_work_in_a_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk").display().to_string();
    let args = ["--seed", "3", "-n", "20", "--color", "never"];
    let mut p = Person::new(home.path(), (80, 24), &args);
    p.sees("/help lists the commands");
    p.types("/help\r");
    p.sees("switch to a branch");
    let hello = p.says("Hello");
    let story = p.says("Tell me a story about a fox.");
    assert!(!hello.is_empty() && !story.is_empty() && hello != story);
    // the same seed says the same, another draw does not
    p.types("/set seed 9\r");
    let first = p.says_after("/regen", 1);
    assert_ne!(first, story);
    p.types("/set seed 9\r");
    assert_eq!(p.says_after("/regen", 1), first);
    assert_ne!(p.says("/regen"), first);
    // back, another way, and back again
    p.types("/undo\r");
    p.sees("undid 1 turn");
    p.types("/branch wolf\r");
    p.sees("created and switched to branch wolf");
    p.says("Tell me a story about a wolf.");
    p.types("/switch main\r");
    p.sees("switched to branch main, 1 turn");
    p.types("/switch wo\t\r");
    p.sees("switched to branch wolf, 2 turns");
    // the message is changed by hand: "wolf." becomes "bear!"
    p.types("/edit\r");
    p.sees("> Tell me a story about a wolf.");
    let bear = p.says_after("\x7f\x7f\x7f\x7f\x7fbear!", 0);
    p.types(&format!("/save {file}\r"));
    p.sees("saved ");
    p.types("/show\r");
    let shown = p.sees("settings");
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
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);

    // another process goes on, and knows what was typed
    let mut p = Person::new(home.path(), (80, 24), &args);
    p.types(&format!("/load {}\t\r", &file[..file.len() - 2]));
    p.sees("loaded 2 turns from ");
    p.types("/edit\r");
    p.sees("> Tell me a story about a bear!");
    p.interrupts();
    p.says("And then?");
    p.types("/undo\r");
    p.sees("undid 1 turn");
    p.types(&format!("{UP}{UP}{UP}{UP}"));
    p.sees("/load ");
    p.interrupts();
    p.types("\x12a wolf"); // Ctrl-R
    p.sees("Tell me a story about a wolf.");
    p.interrupts();
    p.types("/exit\r");
    p.leaves(0);
    assert!(!bear.is_empty());
}

#[test]
fn ctrl_c_stops_the_reply_then_the_chat() {
    let home = tempfile::tempdir().unwrap();
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "-c", "20000", "--temp", "2"]);
    p.sees("Ctrl-D exits");
    // a reply is stopped, and what was said stays
    p.types("Tell me a long story.\r");
    p.sees("\x1b[?2004l");
    p.sees(" ");
    p.types(CTRL_C);
    p.sees("[stopped · ");
    p.types("/show\r");
    p.sees("(of main), 1 turn");
    // what was typed goes, and the next one hints; a message in between starts again
    let hint = "press Ctrl-C again";
    p.types("never said");
    p.sees("never said");
    assert!(!p.interrupts().contains(hint));
    assert!(p.interrupts().contains(hint));
    p.types("/help\r");
    p.sees(PROMPT);
    assert!(p.interrupts().contains(hint));
    p.types(CTRL_C);
    p.leaves(130);
    // a signal from elsewhere ends it at the prompt
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never"]);
    p.sees("> ");
    std::thread::sleep(Duration::from_millis(200));
    p.session.get_process_mut().signal(Signal::SIGTERM).unwrap();
    p.leaves(143);
}

/// SIGTERM while a line is awaited: what was asked to be kept is kept.
#[test]
fn sigterm_at_the_prompt_saves_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk");
    let file = file.to_str().unwrap();
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "-n", "3", "--save-on-exit", file]);
    p.says("Hello");
    p.sees(PROMPT);
    p.types("half a li");
    p.sees("half a li");
    p.session.get_process_mut().signal(Signal::SIGTERM).unwrap();
    p.sees("saved ");
    p.leaves(143);
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "--resume", file]);
    p.sees("loaded 1 turn from ");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

/// The terminal is closed, while a line is awaited and in the middle of a reply: what was said is saved, what was being
/// said too.
#[test]
fn closing_the_terminal_saves_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    for (name, message, more) in [("waiting", "Hello\r", "3"), ("speaking", "Tell me a story\r", "100000")] {
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
        let mut until = |terminal: &mut fs::File, sign: &str| {
            while !seen.contains(sign) {
                let mut some = [0; 4096];
                let count = terminal.read(&mut some).unwrap();
                seen += &String::from_utf8_lossy(&some[..count]);
            }
            seen = seen.split_once(sign).unwrap().1.into();
        };
        until(&mut terminal, PROMPT);
        terminal.write_all(message.as_bytes()).unwrap();
        let signs = if name == "waiting" { ["tok/s", PROMPT] } else { ["\x1b[?2004l", " "] };
        signs.into_iter().for_each(|sign| until(&mut terminal, sign));
        drop(terminal);
        child.wait().unwrap();
        let turns = &session_header(&file)["more"]["chat"]["branches"]["main"]["turns"];
        assert_eq!(turns.as_array().unwrap().len(), 1, "{name}");
        assert_eq!(turns[0]["user"], message.trim_end());
        assert!(!turns[0]["reply"].as_str().unwrap().is_empty(), "{name}");
    }
}

/// SIGTERM ends a chat in the middle of a reply too, where Ctrl-C only stops the reply.
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
        let mut some = [0; 4096];
        let count = terminal.read(&mut some).unwrap();
        seen += &String::from_utf8_lossy(&some[..count]);
    }
    // SAFETY: the process is a child that is not waited for yet.
    unsafe { libc::kill(child.id() as _, libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    let turns = &session_header(&file)["more"]["chat"]["branches"]["main"]["turns"];
    assert_eq!(turns.as_array().unwrap().len(), 1);
}

/// Starts `command` as the leader of a terminal of its own, and returns the terminal's other end.
fn on_a_terminal(command: &mut Command) -> (OwnedFd, Child) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both numbers are filled, the rest is not wanted.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()) };
    assert_eq!(opened, 0);
    // SAFETY: the two are open, and nobody else's.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // SAFETY: so is ours; the flag is all that changes.
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

/// Invalid UTF-8 ends neither the conversation nor the paste that contains it: the rest of the paste is not run.
#[test]
fn invalid_utf8_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "-n", "3"]);
    p.sees(PROMPT);
    p.session.send(b"caf\xe9 ").unwrap();
    p.sees("dropped input that is not valid UTF-8");
    p.sees(PROMPT);
    p.session.send(b"\x1b[200~caf\xe9 au lait\r/branch pasted\r\x1b[201~").unwrap();
    p.sees("dropped input that is not valid UTF-8");
    p.sees(PROMPT);
    p.says("Hello");
    p.sees(PROMPT);
    p.types("/show\r");
    p.sees("main (of main), 1 turn");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

/// Commands are typed: several lines that were pasted are a message, to the letter.
#[test]
fn pasted_lines_are_not_commands() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk");
    fs::write(&file, "mine").unwrap();
    let saves = format!("/save --force {}\n//and more \\\nof it", file.display());
    let mut p = Person::new(home.path(), (300, 24), &["--color", "never", "-n", "3"]);
    p.sees(PROMPT);
    p.types(&format!("\x1b[200~{saves}\x1b[201~"));
    p.types(ENTER);
    p.reply();
    p.sees(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // it is changed without becoming one, and a line that was continued may be one
    p.types("/edit\r");
    p.sees("of it");
    p.types(ENTER);
    p.reply();
    p.sees(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    p.types("/system Be brief.\\\rVery.\r");
    p.sees(PROMPT);
    // nothing but /save --force replaces what is something else
    p.types(&format!("/save {}\r", file.display()));
    p.sees("was not replaced; name another file, or replace it with /save --force");
    p.sees(PROMPT);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    p.types(&format!("/save --force {}\r", file.display()));
    p.sees("saved ");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
    let main = &session_header(&file)["more"]["chat"]["branches"]["main"];
    assert_eq!((&main["system"], &main["turns"][0]["user"]), (&"Be brief.\nVery.".into(), &saves.into()));
    assert_eq!(main["turns"].as_array().unwrap().len(), 1);
}

#[test]
fn a_paste_of_two_thousand_lines_is_one_message() {
    let count = unless_emulated(2000, 100);
    let home = tempfile::tempdir().unwrap();
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "-c", "16000", "-n", "5"]);
    p.sees("Ctrl-D exits");
    let lines: String = (0..count).map(|i| format!("{}\n", i % 10)).collect();
    p.types(&format!("\x1b[200~{lines}\x1b[201~"));
    p.types(ENTER);
    p.reply();
    p.types("/show\r");
    p.sees("(of main), 1 turn");
    let used: usize = p.sees(" of 16,000 tokens").rsplit(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert!(used >= 2 * count, "{used}");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

#[test]
fn unicode_and_multiline_input_work_in_a_narrow_terminal() {
    let home = tempfile::tempdir().unwrap();
    // a hot model says bytes that are parts of characters
    let hot = ["--temp", "50", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "1", "-n", "60"];
    let mut p = Person::new(home.path(), (40, 10), &[&["--color", "never"], &hot[..]].concat());
    let message = "Grüße, 日本語 und 🙂🙂 — das ist viel länger als vierzig Spalten, nicht wahr?";
    for _ in 0..3 {
        let reply = p.says(message);
        assert!(reply.chars().count() > 60, "{reply}");
    }
    p.types("/edit\r");
    p.sees("nicht wahr?");
    p.interrupts();
    p.types("\"\"\"\rone\rtwo\r\"\"\"\r");
    p.reply();
    p.types("three \\\rfour\r");
    p.reply();
    p.types("/edit\r");
    p.sees("three");
    p.sees("four");
    p.interrupts();
    p.types(CTRL_D);
    p.leaves(0);
}

#[test]
fn the_color_flag_is_respected() {
    let home = tempfile::tempdir().unwrap();
    for (more, colours) in [(&["--color", "never"][..], false), (&[], true)] {
        let mut p = Person::new(home.path(), (80, 24), &[&["-n", "3"], more].concat());
        p.says("Hello");
        p.sees(PROMPT);
        p.types(CTRL_D);
        p.leaves(0);
        assert_eq!(p.seen.contains("\x1b[2m"), colours);
    }
}

#[test]
fn read_attaches_a_file_to_the_next_message() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a file.txt");
    fs::write(&file, "All about foxes.\n").unwrap();
    let mut p = Person::new(home.path(), (80, 24), &["--color", "never", "-n", "5"]);
    p.types(&format!("/read {}/a\t\r", home.path().display()));
    p.sees("attached ");
    p.says("What is this about?");
    p.types("/edit\r");
    p.sees("> All about foxes.");
    p.sees("What is this about?");
    p.interrupts();
    p.types("/hlep\r");
    p.sees("unknown command /hlep");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

/// A terminal obeys no text that comes from elsewhere; a pipe gets it as it is.
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
        (&["quantize", "a", "b", name], r"no\x9b31m"), // the parser leaves colors out
        (&text, r"a\x1b[31mb"),
    ] {
        let shown = shown(args);
        assert!(shown.contains(escaped) && !shown.contains(['\x1b', '\u{9b}']), "{shown:?}");
    }
    let piped = hymba(text).output().unwrap();
    assert!(String::from_utf8(piped.stdout).unwrap().contains("a\x1b[31mb"));
}

/// The replies of a model whose tokens hold escapes, with styles of our own or without.
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
        let mut p = Person::new(home.path(), (80, 24), &["-m", file, "--seed", "3", "-n", "20", "--color", color]);
        p.sees(PROMPT);
        p.types("Tell me a story.\r");
        let reply = p.sees(" tok/s");
        assert!(reply.contains(r"e\x1b[31m\x9b2J"), "{color}: {reply:?}");
        assert!(!p.seen.contains("e\x1b[31m") && !p.seen.contains('\u{9b}'), "{color}: {:?}", p.seen);
        p.sees(PROMPT);
        p.types(CTRL_D);
        p.leaves(0);
    }
    let piped =
        hymba(["chat", "-q", "-m", file, "--seed", "3", "-n", "20", "-st", "Tell me a story."]).output().unwrap();
    assert!(String::from_utf8(piped.stdout).unwrap().contains("e\x1b[31m"));
}

/// Lines end between words, at the terminal's width, in a reply that streams and in what stands around it.
#[test]
fn replies_wrap_at_the_terminal_width() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--color", "never", "-n", "80", "--seed", "1", "--temp", "0"];
    let story = "Tell me a short story about a fox";
    let mut p = Person::new(home.path(), (40, 24), &args);
    let narrow = p.says(story);
    assert!(narrow.lines().count() > 3 && narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
    p.sees(PROMPT);
    p.types("/help\r");
    let help = p.sees("the history.");
    assert!(help.lines().all(|line| line.chars().count() <= 40), "{help}");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
    let mut p = Person::new(home.path(), (400, 24), &args);
    let wide = p.says(story);
    assert_eq!(narrow.replace('\n', " "), wide.replace('\n', " "), "no word is lost");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

#[test]
fn a_resumed_session_shows_the_last_turns() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("talk").display().to_string();
    let args = ["--color", "never", "-n", "6", "--session", &file];
    let mut p = Person::new(home.path(), (80, 24), &args);
    for message in ["One", "Two", "Three"] {
        p.says(message);
        p.sees(PROMPT);
    }
    p.types(CTRL_D);
    p.sees("saved ");
    p.leaves(0);
    let mut p = Person::new(home.path(), (80, 24), &args);
    let before = p.sees("loaded 3 turns from ");
    assert!(before.contains("1 turn earlier; /history shows them"), "{before}");
    assert!(before.contains("> Two\n") && before.contains("> Three\n") && !before.contains("> One"), "{before}");
    p.sees(PROMPT);
    p.types("/history\r");
    p.sees("> One");
    p.sees(PROMPT);
    p.types("/histroy\r");
    p.sees("did you mean /history?");
    p.sees(PROMPT);
    // the home folder's short name is completed
    fs::write(home.path().join("a letter.txt"), "Dear fox").unwrap();
    p.types("/read ~/a\t\r");
    p.sees("(8 characters)");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}

/// A terminal that knows nothing but text gets nothing else.
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
    for (sign, answer) in [("> ", "Hello\r"), (" tok/s", ""), ("> ", "/exit\r")] {
        let found = chat.expect(sign).unwrap();
        seen.extend_from_slice(found.before());
        chat.send(answer).unwrap();
    }
    seen.extend_from_slice(chat.expect(expectrl::Eof).unwrap().as_bytes());
    let mut run = start(&["run", "-n", "5", "Once upon a time"]);
    seen.extend_from_slice(run.expect(expectrl::Eof).unwrap().as_bytes());
    seen.extend_from_slice(start(&["run", "--nonsense"]).expect(expectrl::Eof).unwrap().as_bytes());
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("--nonsense") && !seen.contains('\x1b'), "{seen:?}");
    assert!(
        runner().is_some() || seen.contains("The demo is a toy model with"),
        "what the demo is comes first: {seen}"
    );
}

/// At a terminal a text ends by itself, and says so.
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

/// Question, call, result, answer: the result is typed, or a program's that may run; Ctrl-C ends the program.
#[test]
fn tool_results_are_typed_or_come_from_a_program() {
    use std::os::unix::fs::PermissionsExt;

    if runner().is_some() {
        return; // the whole demo calls, not its first layers
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

    let mut p = Person::new(home.path(), (80, 24), &args);
    let called = p.says(QUESTION);
    assert!(called.ends_with(CALL) && !called.contains("toolcall"), "{called}");
    p.sees("/tool RESULT answers the call");
    let answer = p.says(&format!("/tool {RESULT}"));
    assert!(answer.contains("21"), "{answer}");
    p.types("/tool 5\r");
    p.sees("the last reply does not call a tool");
    p.types("/history\r");
    let history = p.sees("21 degrees");
    assert!(history.contains(CALL) && history.contains(RESULT), "{history}");
    p.types("/undo\r");
    p.sees("undid 1 turn");
    p.types("/show\r");
    let shown = p.sees("settings");
    assert!(shown.contains("(of main), 0 turns") && shown.contains("tools     get_weather"), "{shown}");
    p.types(CTRL_D);
    p.leaves(0);

    let answers = program("answers", &format!("cat > '{}'; echo '{RESULT}'", path("call")));
    let mut p = Person::new(home.path(), (80, 24), &[&args[..], &["--tool-command", &answers]].concat());
    p.says(QUESTION);
    p.sees("[y/N]");
    p.types("n\r");
    p.sees("/tool RESULT answers the call");
    assert!(!Path::new(&path("call")).exists());
    p.sees(PROMPT);
    p.types("/regen\r");
    p.sees("[y/N]");
    p.types("y\r");
    let answer = p.sees(" tok/s");
    assert!(answer.contains("21"), "{answer}");
    let call = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n";
    assert_eq!(fs::read_to_string(path("call")).unwrap(), call);
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);

    let waits = program("waits", &format!("touch '{}'; sleep 1000", path("started")));
    let mut p = Person::new(home.path(), (80, 24), &[&args[..], &["--tool-yes", "--tool-command", &waits]].concat());
    p.says(QUESTION);
    while !Path::new(&path("started")).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    p.types(CTRL_C);
    p.sees("stopped before the reply began");
    p.types("/show\r");
    p.sees("(of main), 1 turn");
    p.sees(PROMPT);
    p.types(CTRL_D);
    p.leaves(0);
}
