//! Sources of a prompt: an argument, a file, or standard input.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use hymba::{Error, Result, limits};

use super::{escape::EscapeArgs, terminal, usage::Usage};

/// The prompt flags, which exclude each other.
#[derive(Debug, clap::Args)]
pub struct PromptArgs {
    /// Prompt. Piped input is appended after a blank line; `-`: standard input only
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    pub text: Option<String>,
    /// Prompt (alternative to the positional argument)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read the prompt from a UTF-8 file (`-`: standard input); a trailing newline is stripped
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub stdin: StdinArgs,
}

/// Whether standard input is read.
#[derive(Debug, clap::Args)]
pub struct StdinArgs {
    /// Do not read standard input (for example inside a `while read` loop)
    #[arg(long)]
    no_stdin: bool,
}

impl StdinArgs {
    /// Returns `text` followed by a blank line and standard input, if that is a pipe or a file. `-` means standard
    /// input only.
    pub fn join(&self, text: Option<String>, cancel: &AtomicBool) -> Result<String> {
        let text = match text {
            Some(dash) if dash == "-" => return standard_input(cancel),
            text => text.unwrap_or_default(),
        };
        let more = if self.has_text() { standard_input(cancel)? } else { String::new() };
        Ok(if text.is_empty() || more.is_empty() { text + &more } else { text + "\n\n" + &more })
    }

    /// Whether reading standard input is disabled.
    pub fn is_off(&self) -> bool {
        self.no_stdin
    }

    /// Whether standard input provides text: it is a pipe or a file, and not otherwise used.
    pub fn has_text(&self) -> bool {
        !self.no_stdin && is_pipe_or_file()
    }
}

/// Whether standard input is a pipe or a file. A device such as /dev/null or a service manager's socket provides no
/// text.
#[cfg(unix)]
fn is_pipe_or_file() -> bool {
    use rustix::fs::{FileType, fstat};

    fstat(io::stdin())
        .is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::RegularFile))
}

/// Whether standard input is a pipe or a file.
#[cfg(not(unix))]
fn is_pipe_or_file() -> bool {
    !io::IsTerminal::is_terminal(&io::stdin())
}

impl PromptArgs {
    /// Returns the prompt; empty if none is given and none is `needed`.
    pub fn read(&self, cancel: &AtomicBool, needed: bool, escape: &EscapeArgs) -> anyhow::Result<String> {
        let given = match (&self.file, self.text.as_ref().or(self.prompt.as_ref())) {
            (Some(path), _) if path.as_os_str() == "-" => Some("-".into()),
            (Some(path), _) => Some(read_file(path, cancel)?),
            (None, Some(text)) => Some(escape.text("the prompt", text)?),
            (None, None) => None,
        };
        let nothing = given.is_none();
        let text = self.stdin.join(given, cancel)?;
        if needed && nothing && text.is_empty() {
            let problem = if self.stdin.has_text() { "standard input is empty" } else { "no prompt given" };
            return Err(Usage(format!("{problem}; try: hymba run \"Once upon a time\"")).into());
        }
        Ok(text)
    }
}

/// Reads a file without its trailing line break.
pub fn read_file(path: &Path, cancel: &AtomicBool) -> Result<String> {
    read_text(path, cancel).map(without_line_break)
}

/// Reads a file, which may be a FIFO; `-` is standard input.
pub fn read_text(path: &Path, cancel: &AtomicBool) -> Result<String> {
    if path.as_os_str() == "-" {
        return read_standard_input(cancel);
    }
    let file = path.to_owned();
    let read = move || read_unchanged(&file);
    let bytes = if path.is_file() { read() } else { wait_for(read, cancel, || ())? };
    text(bytes.map_err(|e| Error::io("cannot read", path, e))?, &path.display().to_string())
}

/// Reads standard input without its trailing line break.
pub fn standard_input(cancel: &AtomicBool) -> Result<String> {
    read_standard_input(cancel).map(without_line_break)
}

fn read_standard_input(cancel: &AtomicBool) -> Result<String> {
    const NAME: &str = "standard input";
    let bytes = wait_for(
        || read_limited(io::stdin()),
        cancel,
        || {
            terminal::note("reading standard input until end of file (Ctrl-D at a terminal; disable with --no-stdin)");
        },
    )?;
    text(bytes.map_err(|e| Error::io("cannot read", NAME, e))?, NAME)
}

/// Runs `read` on a separate thread, so that a signal can end the wait, and returns its result. After a second, `notify`
/// is called.
fn wait_for<T: Send + 'static>(
    read: impl Fn() -> T + Clone + Send + 'static,
    cancel: &AtomicBool,
    notify: impl FnOnce(),
) -> Result<T> {
    let (start, mut notify) = (Instant::now(), Some(notify));
    let (send, receive) = mpsc::channel();
    let reader = read.clone();
    if thread::Builder::new().spawn(move || send.send(reader())).is_err() {
        return Ok(read()); // without a thread, a second signal still ends the wait
    }
    loop {
        match receive.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) if !cancel.load(Ordering::Relaxed) => {
                if let Some(notify) = notify.take_if(|_| start.elapsed() > Duration::from_secs(1)) {
                    notify();
                }
            }
            Err(_) => return Err(Error::Cancelled),
        }
    }
}

/// Reads the file at `path`, which must not change meanwhile.
fn read_unchanged(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let state = || file.metadata().map(|now| now.is_file().then(|| (now.len(), now.modified().ok())));
    let before = state()?;
    let bytes = read_limited(&file)?;
    if state()? == before {
        return Ok(bytes);
    }
    Err(io::Error::other("it changed while being read; try again"))
}

/// Reads all bytes, up to one more than the limit.
fn read_limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limits::PROMPT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Decodes `bytes` without a byte order mark; `name` is their source.
fn text(mut bytes: Vec<u8>, name: &str) -> Result<String> {
    if bytes.len() > limits::PROMPT {
        let limit = limits::PROMPT / limits::MB;
        return Err(Error::format(name, format!("is larger than the limit of {limit} MB; use a part of it")));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(name, format!("is not UTF-8 text (see byte {at}); convert it first, for example with iconv"))
    })
}

/// The UTF-8 byte order mark that some Windows editors write.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Skips the byte order mark, if there is one.
pub fn skip_byte_order_mark(text: &mut impl BufRead) -> io::Result<()> {
    if text.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        text.consume(BYTE_ORDER_MARK.len());
    }
    Ok(())
}

fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_line_break_is_stripped() {
        for (given, kept) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a ", "a "), ("\n", ""), ("", "")] {
            assert_eq!(without_line_break(given.into()), kept);
        }
    }

    #[test]
    fn invalid_prompts_are_rejected() {
        let error = text(b"caf\xE9".into(), "f.txt").unwrap_err().to_string();
        assert_eq!(error, "f.txt: is not UTF-8 text (see byte 3); convert it first, for example with iconv");
        assert_eq!(text("\u{feff}a\u{feff}".into(), "f.txt").unwrap(), "a\u{feff}");
        let endless = read_limited(io::repeat(b'a')).unwrap();
        assert!(
            text(endless, "zeros").unwrap_err().to_string().starts_with("zeros: is larger than the limit of 16 MB")
        );
    }
}
