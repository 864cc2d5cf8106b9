//! Faults of the environment: files that change while they are in use, full disks, missing permissions, SIGKILL at any
//! moment, too little memory, closed pipes.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{demo, fails, golden, hymba, hymba_at, quantize, runner, succeeds, text, unless_emulated};
use hymba::format::gguf::Gguf;

/// Returns the file names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the start of the output.
fn wait_for_output(child: &mut Child) {
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 20]).unwrap();
}

/// Waits for the end, and returns the exit code and the message, which is at most one sentence.
#[track_caller]
fn wait(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let stderr = text(&stderr);
    assert!(stderr.lines().count() <= 1 && !stderr.contains("panicked"), "{stderr}");
    (status.code(), stderr)
}

#[test]
fn a_truncated_or_overwritten_model_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    let endless = ["-q", "-c", "100000", "-m"];
    let run = || piped(hymba(["run", "Once upon a time", "--ignore-eos", "--no-stdin"]).args(endless).arg(&model));
    let chat = || {
        let mut child = piped(hymba(["chat"]).args(endless).arg(&model));
        // replies may be short, so there are many messages
        child.stdin.as_mut().unwrap().write_all("Tell me a story\n".repeat(500).as_bytes()).unwrap();
        child
    };
    let refused = |mut child: Child, change: &dyn Fn()| {
        wait_for_output(&mut child);
        change();
        let (code, message) = wait(child);
        assert_eq!(code, Some(1), "{message}");
        assert!(
            message.starts_with("hymba: ") && message.contains("model.gguf: was shortened or overwritten"),
            "{message}"
        );
    };
    let fresh = || {
        let _ = fs::remove_file(&model);
        fs::copy(demo(), &model).unwrap();
    };
    let length = |length| fs::File::options().write(true).open(&model).unwrap().set_len(length).unwrap();
    for start in [&run as &dyn Fn() -> Child, &chat] {
        for left in [0, 4096, 15_000_000] {
            fresh();
            refused(start(), &|| length(left));
        }
        fresh();
        refused(start(), &|| fs::write(&model, vec![0; fs::metadata(&model).unwrap().len() as usize]).unwrap());
        // a new file of the same name does not affect users of the old one
        fresh();
        let mut child = start();
        wait_for_output(&mut child);
        fs::write(dir.path().join("other"), "other").unwrap();
        fs::rename(dir.path().join("other"), &model).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 300]).unwrap();
        fs::remove_file(&model).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 300]).unwrap();
        signal(&child, "TERM");
        assert_eq!(wait(child), (Some(143), String::new()));
    }
    // a SIGBUS sent by a process has its usual effect
    fresh();
    let mut child = run();
    wait_for_output(&mut child);
    signal(&child, "BUS");
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(7));
}

/// Returns the command in a shell that first executes `limit`.
fn limited(limit: &str, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{limit}; exec \"$@\""), "bash"]).arg(command.get_program()).args(command.get_args());
    shell.env_remove("HYMBA_MODEL").stdin(Stdio::null());
    shell
}

/// With a file size limit of 200 kB, writes fail and no partial file stays.
#[test]
fn failed_writes_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let full = |command: &mut Command| {
        let out = path("out");
        fails(&mut limited("ulimit -f 200", command.arg(&out)), 1, &["cannot write", "/out: ", "large"]);
        assert_eq!(names(dir.path()), [""; 0]);
        fs::write(&out, "old").unwrap();
        // `run` and `chat` would resume an old session
        if command.get_args().any(|a| a == "quantize" || a == "eval") {
            fails(&mut limited("ulimit -f 200", command.arg("--force")), 1, &["cannot write", "large"]);
            assert_eq!((names(dir.path()), fs::read(&out).unwrap()), (vec!["out".to_owned()], b"old".to_vec()));
        }
        fs::remove_file(&out).unwrap();
    };
    full(&mut hymba(["quantize", "-q", "--type", "f32", &golden("tiny-b")]));
    full(&mut hymba(["eval", "logits", "--ids", "1,2,3,4,5,6,7,8,9,10,11,12", "-o"]));
    full(&mut hymba(["run", "-q", "-n", "3", "Once", "--session"]));
    full(&mut hymba(["run", "-q", "-n", "3", "Once", "--prompt-cache"]));
    full(&mut hymba(["chat", "-q", "-st", "-n", "3", "Once", "--save-on-exit"]));
    // standard output
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    for args in [
        &["run", "-q", "-n", "3", "Once"][..],
        &["run", "-q", "-n", "3", "--json", "Once"],
        &["chat", "-q", "-st", "-n", "3", "Once"],
        &["inspect", &demo()],
        &["run", "--list-devices"],
        &["--help"],
        &["help", "run"],
        &["--version"],
    ] {
        let Output { status, stderr, .. } = hymba(args).stdout(full()).output().unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}");
        assert!(text(&stderr).contains("No space left") && text(&stderr).lines().count() == 1, "{}", text(&stderr));
    }
    fails(hymba(["quantize", &golden("tiny-a")]).arg("/dev/full"), 1, &["/dev/full", "device"]);
}

/// A closed standard output is an error for commands that write to it.
#[test]
fn a_closed_stdout_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let closed = |args: &[&str]| limited("exec >&-", &hymba(args));
    let (model, tiny, out, quiet, logits) = (demo(), golden("tiny-a"), path("out"), path("quiet"), path("logits"));
    for args in [
        &["run", "-q", "-n", "3", "Once"][..],
        &["chat", "-q", "-st", "-n", "3", "Once"],
        &["inspect", &model],
        &["quantize", &tiny, &out],
        &["--help"],
        &["--version"],
    ] {
        fails(&mut closed(args), 1, &["cannot write to standard output: it is closed"]);
    }
    succeeds(&mut closed(&["quantize", "-q", &tiny, &quiet]));
    succeeds(&mut closed(&["eval", "logits", "--ids", "1", "-o", &logits]));
    fails(&mut closed(&["run", "--no-such-flag"]), 2, &["--no-such-flag"]);
    assert_eq!(names(dir.path()), ["logits", "quiet"]);
}

/// Missing permissions are reported before any work is done.
#[test]
fn missing_permissions_are_reported_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // permissions do not apply to root: use another user
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    // and a copy of the program in a folder that this user may enter
    let program = path("hymba");
    if fs::hard_link(env!("CARGO_BIN_EXE_hymba"), &program).is_err() {
        fs::copy(env!("CARGO_BIN_EXE_hymba"), &program).unwrap();
    }
    let unprivileged = |args: &[&str]| {
        let mut command = hymba_at(&program, args);
        if root {
            command.uid(65534).gid(65534);
        }
        command
    };
    fs::create_dir(path("folder")).unwrap();
    let model = path("model.gguf");
    quantize(&golden("tiny-a"), &model, &[]);
    let (folder, out) = (path("folder"), path("folder/out"));
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    mode(&folder, 0o555);
    mode(dir.path(), 0o755);
    for command in [
        &["quantize", model, out][..],
        &["run", "-n", "100000", "-c", "200000", "--ignore-eos", "Once", "--session", out],
        &["run", "-n", "100000", "-c", "200000", "--ignore-eos", "Once", "--prompt-cache", out],
        &["chat", "-st", "Once", "--save-on-exit", out],
    ] {
        let start = Instant::now();
        fails(&mut unprivileged(command), 1, &["cannot create", out, "Permission denied"]);
        assert!(start.elapsed() < Duration::from_secs(10), "{command:?} reported it only after the work");
    }
    assert_eq!(names(&folder), [""; 0]);
    mode(Path::new(model), 0o000);
    fails(&mut unprivileged(&["inspect", model]), 1, &["cannot open", "model.gguf", "Permission denied"]);
    mode(&folder, 0o000);
    fails(&mut unprivileged(&["run", "Once", "-m", out]), 1, &["cannot open", out, "Permission denied"]);
    mode(&folder, 0o755);
}

/// The system calls that write to a file, and those that name it. strace counts calls per thread: only with separate sets is
/// the thread that names the file killed at that call.
const CALLS: [&str; 2] = [
    "write,pwrite64,writev,ftruncate,fallocate,fsync,fdatasync",
    "ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat",
];

/// Runs a command that writes `target`, and kills it at its first write, at its second, and so on until it succeeds. After each
/// kill, `target` is `old` or passes `check_new`, and all other files have temporary names. Returns the number of kills.
fn killed_at_every_write(
    target: &Path,
    old: Option<&[u8]>,
    check_new: &dyn Fn(),
    command: &dyn Fn() -> Command,
) -> usize {
    CALLS.iter().map(|calls| killed_at_every(calls, target, old, check_new, command)).sum()
}

fn killed_at_every(
    calls: &str,
    target: &Path,
    old: Option<&[u8]>,
    check_new: &dyn Fn(),
    command: &dyn Fn() -> Command,
) -> usize {
    let folder = target.parent().unwrap();
    let name = target.file_name().unwrap().to_str().unwrap();
    let mut temporary_files = 0;
    for kill in 1.. {
        match old {
            Some(old) => fs::write(target, old).unwrap(),
            None => drop(fs::remove_file(target)),
        }
        let command = command();
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e"]);
        traced.arg(format!("inject={calls}:signal=KILL:when={kill}"));
        traced.arg(command.get_program()).args(command.get_args()).env_remove("HYMBA_MODEL").stdin(Stdio::null());
        traced.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let Output { status, stderr, .. } = traced.output().unwrap();
        let leftovers: Vec<_> = names(folder).into_iter().filter(|n| n != name).collect();
        temporary_files += leftovers.len();
        assert!(leftovers.iter().all(|n| n.starts_with(&format!(".{name}.hymba-"))), "kill {kill}: {leftovers:?}");
        match fs::read(target) {
            Ok(now) if old == Some(&now) => {}
            Ok(_) => check_new(),
            Err(_) => assert!(old.is_none(), "kill {kill}: the old file is gone"),
        }
        if status.success() {
            check_new();
            assert_eq!(names(folder), [name], "the last run removes the temporary files");
            println!("{} kills, {temporary_files} temporary files for the next run to remove", kill - 1);
            return kill - 1;
        }
        assert!(status.signal() == Some(9) || status.code() == Some(137), "kill {kill}: {status}, {}", text(&stderr));
    }
    unreachable!()
}

#[test]
fn sigkill_at_any_write_leaves_the_old_or_the_new_file() {
    if !Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: SIGKILL at every write needs strace");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        dir.path().join(name).join("file")
    };
    thread::scope(|scope| {
        for &(name, old) in unless_emulated(&[("new", false), ("replaced", true)][..], &[("replaced", true)]) {
            let model = folder(name);
            scope.spawn(move || {
                let old = old.then(|| [&b"GGUF"[..], &[7; 5000]].concat());
                let check_new = || drop(Gguf::open(&model).unwrap());
                let quantize = || hymba(["quantize", "--force", "-t", "1", &golden("tiny-c"), model.to_str().unwrap()]);
                let kills = killed_at_every_write(&model, old.as_deref(), &check_new, &quantize);
                assert!(kills > 3, "{kills}"); // the data, both syncs and the name
            });
        }
    });
    let session = folder("session");
    let run = || hymba(["run", "-q", "-t", "1", "-n", "2", "Once", "--session", session.to_str().unwrap()]);
    let resumes = || drop(succeeds(run().arg("--session-ro")));
    let kills = killed_at_every_write(&session, None, &resumes, &run);
    assert!(kills > 5, "{kills}");
    let old = fs::read(&session).unwrap();
    if runner().is_none() {
        killed_at_every_write(&session, Some(&old), &resumes, &run);
    }
    let saved_chat = folder("talk");
    let chat =
        |flag: &str| hymba(["chat", "-q", "-t", "1", "-n", "2", "-st", "Hello", flag, saved_chat.to_str().unwrap()]);
    let resumes = || drop(succeeds(&mut chat("--resume")));
    let kills = killed_at_every_write(&saved_chat, None, &resumes, &|| chat("--save-on-exit"));
    assert!(kills > 5, "{kills}");
    if runner().is_none() {
        let old = fs::read(&saved_chat).unwrap();
        killed_at_every_write(&saved_chat, Some(&old), &resumes, &|| chat("--save-on-exit"));
    }
}

/// If threads cannot be created, the command runs with fewer threads or fails with one sentence.
#[test]
fn a_thread_limit_costs_speed_or_is_an_error() {
    if runner().is_some() {
        eprintln!("SKIPPED: an emulator has its own threads");
        return;
    }
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        eprintln!("SKIPPED: a thread limit needs a separate user, and so root");
        return;
    }
    const UNUSED_UID: u32 = 61_283;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_hymba"), path("hymba")).unwrap();
    let folder = path("folder");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&golden("tiny-a")).join(file), format!("{folder}/{file}")).unwrap();
    }
    fs::write(path("text"), "Once upon a time there was a fox.").unwrap();
    for (i, (args, must_work)) in [
        (&["run", "-q", "-n", "3", "-t", "4", "-"][..], true),
        (&["run", "-q", "-n", "3", "-f", &path("text"), "--session", &path("session")], true),
        (&["run", "-q", "-n", "1", "--session-ro", "--session", &path("session")], true),
        (&["chat", "-q", "-n", "3"], false),
        (&["eval", "activations", "--tokens", "4", &path("text")], true),
        (&["quantize", "-q", "--force", &folder, &path("out")], false),
    ]
    .into_iter()
    .enumerate()
    {
        for threads in [1, 2, 3, 4] {
            let program = hymba_at(Path::new(&path("hymba")), args);
            let mut command = limited(&format!("ulimit -u {threads}"), &program);
            command.uid(UNUSED_UID).gid(UNUSED_UID).current_dir(dir.path());
            command.stdin(fs::File::open(path("text")).unwrap());
            let Output { status, stderr, .. } = command.output().unwrap();
            let stderr = text(&stderr);
            assert!(!stderr.contains("panicked"), "{args:?}, {threads} threads: {stderr}");
            let works = must_work || threads == 4;
            assert!(status.code() == Some(0) || !works && status.code() == Some(1), "{i} {threads}: {stderr}");
            assert!(status.success() || stderr.contains("thread"), "{args:?}, {threads} threads: {stderr}");
        }
    }
}

/// Too little memory is reported before any output.
#[test]
fn a_context_larger_than_memory_is_refused() {
    for args in [&["run", "Once"][..], &["chat", "-q", "-st", "Once"]] {
        let mut command = hymba(args);
        command.args(["-c", "16777216", "-t", "1"]);
        let Output { status, stdout, stderr } = limited("ulimit -v 4000000", &command).output().unwrap();
        assert_eq!(status.code(), Some(1), "{}", text(&stderr));
        assert!(text(&stderr).contains("not enough memory for") && text(&stderr).contains("-c"), "{}", text(&stderr));
        assert!(stdout.is_empty());
    }
    // more than the machine has, if that is less than 70 GB
    if hymba::system::available_memory().is_some_and(|bytes| bytes < 70_000_000_000) {
        let long = ["run", "-q", "-n", "1", "Once", "-c", "16777216", "--cache-type", "f32"];
        fails(&mut hymba(long), 1, &["not enough memory for", "-c"]);
    }
}

/// A reader that closes the pipe causes no error and no message.
#[test]
fn a_closed_pipe_is_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let (out, tiny, model) = (out.to_str().unwrap(), golden("tiny-a"), demo());
    let heldout = format!("{}/tests/data/heldout.txt", env!("CARGO_MANIFEST_DIR"));
    for args in [
        &["run", "-q", "Once", "-n", "5"][..],
        &["run", "-q", "Once", "-n", "5", "--json"],
        &["run", "--list-devices"],
        &["chat", "-q", "-st", "-n", "5", "Once"],
        &["inspect", &model],
        &["inspect", "--tensors", &model],
        &["inspect", "--json", &model],
        &["eval", "perplexity", &heldout, "--tokens", "64", "-m", &model],
        &["quantize", &tiny, out],
        &["--help"],
        &["help", "run"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let Output { status, stderr, .. } = hymba(args).stdout(writer).output().unwrap();
        assert!(status.success() && stderr.is_empty(), "{args:?}: {status}, {}", text(&stderr));
    }
    assert!(Gguf::open(Path::new(out)).is_ok());
}

/// SIGTERM ends `run` and `chat` as Ctrl-C does: --session and --save-on-exit apply.
#[test]
fn sigterm_saves_texts_and_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let mut child = piped(
        hymba(["run", "Once upon a time", "-q", "--no-stdin", "--ignore-eos", "-c", "100000", "--session"])
            .arg(path("run")),
    );
    wait_for_output(&mut child);
    signal(&child, "TERM");
    assert_eq!(wait(child), (Some(143), String::new()));
    succeeds(hymba(["run", "-q", "-n", "2", "-c", "100000", "--session"]).arg(path("run")));

    for (name, message) in [("replying", "Tell me a story"), ("waiting", "")] {
        let args = if message.is_empty() { ["-n", "2"] } else { ["-n", "-1"] };
        let mut child = piped(hymba(["chat", "-q", "-c", "100000", "--save-on-exit"]).arg(path(name)).args(args));
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "Hello, who are you?\n{message}").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        if message.is_empty() {
            thread::sleep(Duration::from_millis(100));
        }
        signal(&child, "TERM");
        assert_eq!(wait(child), (Some(143), String::new()), "{name}");
        drop(input);
        let mut resumed =
            piped(hymba(["chat", "-q", "--commands", "-n", "1", "-c", "100000", "--resume"]).arg(path(name)));
        resumed.stdin.take().unwrap().write_all(b"/show\n").unwrap();
        let Output { status, stdout, .. } = resumed.wait_with_output().unwrap();
        assert!(status.success() && text(&stdout).contains("turn"), "{name}: {}", text(&stdout));
    }
    assert_eq!(names(dir.path()), ["replying", "run", "waiting"]);
}

/// The exit code is 128 plus the signal; a signal ignored at the start, as under nohup, stays ignored.
#[test]
fn exit_codes_name_the_signal_and_ignored_signals_stay_ignored() {
    let endless = || hymba(["run", "Once upon a time", "-q", "--no-stdin", "--ignore-eos", "-c", "100000"]);
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = piped(&mut endless());
        wait_for_output(&mut child);
        signal(&child, name);
        assert_eq!(wait(child), (Some(code), String::new()), "{name}");

        let mut child = piped(&mut limited(&format!("trap '' {name}"), &endless()));
        wait_for_output(&mut child);
        signal(&child, name);
        signal(&child, name);
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 300]).unwrap();
        signal(&child, if name == "TERM" { "INT" } else { "TERM" });
        assert_eq!(wait(child).0, Some(if name == "TERM" { 130 } else { 143 }), "{name} was ignored");
    }
}

/// A named pipe without a writer is refused as a file with random access; otherwise it is read, and a signal ends the wait.
#[test]
fn named_pipes_are_refused_or_interruptible() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let (pipe, folder, out) = (dir.path().join("pipe"), dir.path().join("folder"), dir.path().join("out"));
    fifo(&pipe);
    let (pipe, model, out) = (pipe.to_str().unwrap(), demo(), out.to_str().unwrap());
    let not_regular = "is a pipe, not a regular file";
    for command in [
        &["run", "-q", "Once", "-m", pipe][..],
        &["run", "-q", "Once", "--session-ro", "--session", pipe],
        &["chat", "-q", "-st", "Once", "--resume", pipe],
        &["inspect", pipe],
        &["quantize", pipe, out],
        &["quantize", &model, out, "--calibration", pipe],
        &["eval", "logits", "--ids", "1", "-o", out, "-m", pipe],
    ] {
        fails(&mut hymba(command), 1, &["pipe", not_regular]);
    }
    fails(&mut hymba(["inspect", "/dev/zero"]), 1, &["/dev/zero: is a device, not a regular file"]);
    for name in ["config.json", "model.safetensors"] {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(Path::new(&golden("tiny-a")).join(file), folder.join(file)).unwrap();
        }
        fs::remove_file(folder.join(name)).unwrap();
        fifo(&folder.join(name));
        fails(&mut hymba(["quantize", folder.to_str().unwrap(), out]), 1, &[name, not_regular]);
    }
    for command in [
        &["run", "-q", "-f", pipe][..],
        &["chat", "-q", "-st", "Once", "--system-file", pipe],
        &["chat", "-q", "-st", "Once", "--chat-template-file", pipe],
        &["eval", "perplexity", pipe, "--json"],
        &["eval", "logits", "--ids-file", pipe, "-o", out],
        &["quantize", &model, out, "--calibrate", pipe],
    ] {
        let child = piped(&mut hymba(command));
        thread::sleep(Duration::from_millis(unless_emulated(700, 5000)));
        signal(&child, "TERM");
        let start = Instant::now();
        assert_eq!(wait(child), (Some(143), String::new()), "{command:?}");
        assert!(start.elapsed() < Duration::from_secs(unless_emulated(1, 10)), "{command:?}: {:?}", start.elapsed());
    }
    let child = piped(hymba(["run", "-q", "--temp", "0", "-n", "2", "-f", pipe]).stdin(Stdio::null()));
    fs::write(pipe, "Once upon a time").unwrap();
    assert!(text(&child.wait_with_output().unwrap().stdout).starts_with("Once upon a time"));
}

/// While two processes save the same session, the file is always one of the two, complete.
#[test]
fn concurrent_saves_never_mix() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk");
    let name = file.to_str().unwrap();
    let chat = |message: &str, times: usize| {
        let mut child =
            piped(hymba(["chat", "-q", "--commands", "-n", "3", "--seed", "1", "-t", "1"]).args(["-c", "300"]));
        let saves = format!("/save {name}\n").repeat(times);
        child.stdin.take().unwrap().write_all(format!("{message}\n{saves}").as_bytes()).unwrap();
        child
    };
    let saved = |message| {
        assert!(chat(message, 1).wait_with_output().unwrap().status.success());
        fs::read(&file).unwrap()
    };
    let (a, b) = (saved("Hello"), saved("Tell me a story about a fox."));
    assert_ne!(a, b);
    let mut children = ["Hello", "Tell me a story about a fox."].map(|message| chat(message, 60));
    let mut seen = [0; 2];
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        let now = fs::read(&file).unwrap();
        assert!(now == a || now == b, "{} bytes, which is neither session", now.len());
        seen[usize::from(now == b)] += 1;
    }
    for child in children {
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert!(status.success(), "{}", text(&stderr));
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    assert_eq!(names(dir.path()), ["talk"]);
}
