//! A program that answers tool calls: executed directly, with limits on time and output.

use std::{
    fmt,
    io::{self, Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use hymba::{Error, limits, text::Call};

/// Time limit of the program.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time to wait for remaining output after the program has exited, which child processes may still write.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of its standard error that is kept.
const MESSAGES: usize = 64 << 10;

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    words: Vec<String>,
    patience: Duration,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.words.join(" "))
    }
}

impl Program {
    /// Splits a command line at white space outside of quotes; there is no other shell syntax.
    pub fn new(command: &str) -> Result<Self, String> {
        let words = shlex::split(command).ok_or("unterminated quote or trailing backslash")?;
        if words.first().is_none_or(String::is_empty) {
            return Err("names no program to run".into());
        }
        Ok(Self { words, patience: PATIENCE })
    }

    /// Runs the program on `call` and returns its output without the trailing line break. Failures are sentences for
    /// both the user and the model; `cancel` ends the program with its own error.
    pub fn run(&self, call: &Call, cancel: &AtomicBool) -> hymba::Result<Result<String, String>> {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its child processes end with it, and Ctrl-C is handled by this process.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut running = match command.spawn() {
            Ok(child) => Running(child),
            Err(e) => return Ok(Err(format!("{self} cannot be started: {e}"))),
        };
        match self.attend(&mut running, call, cancel) {
            Ok(done) => Ok(done),
            Err(Stopped::Cancelled) => Err(Error::Cancelled),
            Err(Stopped::Failed(reason)) => Ok(Err(reason)),
        }
    }

    /// Exchanges data with the program until it has ended.
    fn attend(
        &self,
        running: &mut Running,
        call: &Call,
        cancel: &AtomicBool,
    ) -> Result<Result<String, String>, Stopped> {
        let start = Instant::now();
        let fails = |e: io::Error| Stopped::Failed(format!("{self} cannot be run: {e}"));
        let child = &mut running.0;
        if let Some(mut input) = child.stdin.take() {
            let text = call.to_json() + "\n";
            // A program that does not read its input is fine, so write errors are ignored.
            thread::Builder::new().spawn(move || input.write_all(text.as_bytes())).map_err(fails)?;
        }
        let output = child.stdout.take().map(|output| read_on_thread(output, limits::TOOL_RESULT));
        let messages = child.stderr.take().map(|messages| read_on_thread(messages, MESSAGES));
        let (Some(output), Some(messages)) = (output.transpose().map_err(fails)?, messages.transpose().map_err(fails)?)
        else {
            return Err(Stopped::Failed(format!("{self} has no output")));
        };
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let mut read: Option<Output> = None;
        loop {
            if read.is_none() {
                read = output.try_recv().ok();
                if read.as_ref().is_some_and(|read| read.is_long) {
                    let limit = limits::TOOL_RESULT / limits::MB;
                    return Err(Stopped::Failed(format!("{self} was killed: it printed more than {limit} MB")));
                }
            }
            if ended.is_none() {
                ended = child.try_wait().map_err(fails)?.map(|status| (status, Instant::now()));
            }
            match (&ended, read.take()) {
                (Some((status, _)), Some(read)) => {
                    let messages = messages.recv_timeout(OUTPUT_TIMEOUT).map(|read| read.bytes).unwrap_or_default();
                    return Ok(self.outcome(*status, read.bytes, &messages));
                }
                (Some((_, since)), None) if since.elapsed() > OUTPUT_TIMEOUT => {
                    return Err(Stopped::Failed(format!(
                        "{self} has exited, but its output is still open in a child process"
                    )));
                }
                (_, still) => read = still,
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Stopped::Cancelled);
            }
            if start.elapsed() > self.patience {
                let seconds = self.patience.as_secs();
                return Err(Stopped::Failed(format!("{self} was killed: it took longer than {seconds} s")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the result from the program's exit status and output.
    fn outcome(&self, status: ExitStatus, output: Vec<u8>, messages: &[u8]) -> Result<String, String> {
        if !status.success() {
            let messages = String::from_utf8_lossy(messages);
            let last = messages.lines().rev().map(str::trim).find(|line| !line.is_empty());
            let last = last.map(|line| format!(": {}", line.chars().take(400).collect::<String>()));
            return Err(format!("{self} failed ({status}){}", last.unwrap_or_default()));
        }
        let mut text = String::from_utf8(output).map_err(|_| format!("{self} printed invalid UTF-8"))?;
        if text.ends_with('\n') {
            text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
        }
        Ok(text)
    }
}

/// Why a program was ended.
enum Stopped {
    Cancelled,
    Failed(String),
}

/// A running program, which is killed with its child processes when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        #[cfg(unix)]
        {
            use rustix::process::{Pid, Signal, kill_process_group};

            // Other processes in the group may outlive the program.
            if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The output read so far.
struct Output {
    bytes: Vec<u8>,
    /// Whether it exceeds the limit.
    is_long: bool,
}

/// Reads on a separate thread, which lives as long as there is something to read.
fn read_on_thread(mut from: impl Read + Send + 'static, limit: usize) -> io::Result<Receiver<Output>> {
    let (send, receive) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        let _ = (&mut from).take(limit as u64 + 1).read_to_end(&mut bytes);
        let is_long = bytes.len() > limit;
        bytes.truncate(limit);
        let _ = send.send(Output { bytes, is_long });
        let _ = io::copy(&mut from, &mut io::sink());
    };
    thread::Builder::new().spawn(read).map(|_| receive)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    static NO_CANCEL: AtomicBool = AtomicBool::new(false);

    fn call() -> Call {
        Call { name: "f".into(), arguments: r#"{"a": "$HOME"}"#.into() }
    }

    fn run(words: &[&str]) -> Result<String, String> {
        let words = words.iter().map(|word| word.to_string()).collect();
        Program { words, patience: Duration::from_millis(300) }.run(&call(), &NO_CANCEL).unwrap()
    }

    #[test]
    fn command_lines_are_split_without_shell_interpretation() {
        let words = |command: &str| Program::new(command).map(|program| program.words);
        assert_eq!(words(r#"a 'b c' "d e"  f\ g $HOME;h|i"#).unwrap(), ["a", "b c", "d e", "f g", "$HOME;h|i"]);
        for bad in ["", "  ", "''", "a 'b", "a \\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs_receive_the_call_and_return_the_result() {
        assert_eq!(run(&["cat"]).unwrap(), r#"{"name": "f", "arguments": {"a": "$HOME"}}"#);
        assert_eq!(run(&["echo", "$HOME; ls"]).unwrap(), "$HOME; ls");
        assert_eq!(run(&["printf", r"a\n\n"]).unwrap(), "a\n");
        assert_eq!(run(&["true"]).unwrap(), "");
    }

    #[test]
    fn failures_are_described() {
        let failure = |script: &str| run(&["sh", "-c", script]).unwrap_err();
        assert!(
            failure("echo a >&2; echo no such city >&2; exit 3").ends_with("failed (exit status: 3): no such city")
        );
        assert!(failure("kill -9 $$").contains("failed (signal: 9"));
        assert!(failure("printf '\\377'").ends_with("printed invalid UTF-8"));
        assert!(failure("yes").ends_with("was killed: it printed more than 1 MB"));
        assert!(failure("sleep 100").ends_with("was killed: it took longer than 0 s"));
        assert!(run(&["/no/such/program"]).unwrap_err().contains("cannot be started"));
        // much output on standard error does not block it
        assert_eq!(run(&["sh", "-c", "head -c 200000 /dev/zero >&2; echo done"]).unwrap(), "done");
    }

    #[test]
    fn cancelling_kills_child_processes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > '{0}.new'; mv '{0}.new' '{0}'; wait", file.display());
        let program = Program { words: ["sh", "-c", &*script].map(String::from).to_vec(), patience: PATIENCE };
        let cancel = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !file.exists() {
                    thread::sleep(Duration::from_millis(5));
                }
                cancel.store(true, Ordering::Relaxed);
            });
            assert!(matches!(program.run(&call(), &cancel), Err(Error::Cancelled)));
        });
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // An orphan is reaped by its new parent, which may take a moment.
        let ended = |_: u32| {
            thread::sleep(Duration::from_millis(10));
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            rustix::process::test_kill_process(pid).is_err() || state.contains(") Z ")
        };
        assert!((0..1000).any(ended), "the program's child is still running");
    }
}
