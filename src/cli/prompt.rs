//! Where a prompt comes from: an argument, a file, or standard input.

use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use hymba::{Error, Result, limits};

use super::{escape::EscapeArgs, usage::Usage};

/// The prompt flags; one of them at most.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct PromptArgs {
    /// Text to continue; `-` or a pipe: read it from standard input
    #[arg(value_name = "PROMPT")]
    pub text: Option<String>,
    /// The same as PROMPT
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file, which must be UTF-8 text; one line break at its end is left out
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl PromptArgs {
    /// The prompt; empty where none is given and none is `needed`.
    pub fn read(&self, cancel: &AtomicBool, needed: bool, escape: &EscapeArgs) -> anyhow::Result<String> {
        if let Some(path) = &self.file {
            return Ok(read_file(path, cancel)?);
        }
        let none = |what: &str| Usage(format!("{what}; give a prompt: hymba run \"Once upon a time\""));
        match self.text.as_deref().or(self.prompt.as_deref()) {
            Some("-") => Ok(standard_input(cancel)?),
            Some(text) => Ok(escape.text("the prompt", text)?),
            None if !needed && io::stdin().is_terminal() => Ok(String::new()),
            None if io::stdin().is_terminal() => Err(none("there is nothing to continue").into()),
            None => match standard_input(cancel)? {
                text if needed && text.is_empty() => Err(none("standard input is empty").into()),
                text => Ok(text),
            },
        }
    }
}

/// The text of a file, without the line break at its end.
pub fn read_file(path: &Path, cancel: &AtomicBool) -> Result<String> {
    read_whole(path, cancel).map(without_line_break)
}

/// The text of a file, which may be a pipe with a name.
pub fn read_whole(path: &Path, cancel: &AtomicBool) -> Result<String> {
    let file = path.to_owned();
    let read = move || read_unchanged(&file);
    let bytes = if path.is_file() { read() } else { wait_for(read, cancel)? };
    text(bytes.map_err(|e| Error::io("cannot read", path, e))?, &path.display().to_string())
}

/// Everything on standard input.
pub fn standard_input(cancel: &AtomicBool) -> Result<String> {
    const NAME: &str = "standard input";
    let bytes = wait_for(|| read_limited(io::stdin()), cancel)?;
    text(bytes.map_err(|e| Error::io("cannot read", NAME, e))?, NAME).map(without_line_break)
}

/// Returns what `read` does. A thread of its own waits for it, so that a signal ends the wait.
fn wait_for<T: Send + 'static>(read: impl Fn() -> T + Clone + Send + 'static, cancel: &AtomicBool) -> Result<T> {
    let (send, receive) = mpsc::channel();
    let reader = read.clone();
    if thread::Builder::new().spawn(move || send.send(reader())).is_err() {
        return Ok(read()); // a system that refuses threads lets a second signal end the wait
    }
    loop {
        match receive.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) if !cancel.load(Ordering::Relaxed) => {}
            Err(_) => return Err(Error::Cancelled),
        }
    }
}

/// The bytes of the file at `path`, which nobody writes to meanwhile.
fn read_unchanged(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let state = || file.metadata().map(|now| now.is_file().then(|| (now.len(), now.modified().ok())));
    let before = state()?;
    let bytes = read_limited(&file)?;
    if state()? == before {
        return Ok(bytes);
    }
    Err(io::Error::other("another program wrote to it meanwhile; try again"))
}

/// All bytes, or one more than may be.
fn read_limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limits::PROMPT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of `bytes`, without a byte order mark; `name` says where they are from.
fn text(mut bytes: Vec<u8>, name: &str) -> Result<String> {
    if bytes.len() > limits::PROMPT {
        let limit = limits::PROMPT >> 20;
        return Err(Error::format(name, format!("is larger than {limit} MiB, too much for a text; give a part of it")));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(name, format!("is not UTF-8 text (see byte {at}); convert it first, for example with iconv"))
    })
}

/// What some editors, on Windows above all, begin a UTF-8 text with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Goes on behind the byte order mark of a text, if it begins with one.
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
    fn one_line_break_goes() {
        for (given, kept) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a ", "a "), ("\n", ""), ("", "")] {
            assert_eq!(without_line_break(given.into()), kept);
        }
    }

    #[test]
    fn bytes_that_are_no_prompt_are_refused() {
        let error = text(b"caf\xE9".into(), "f.txt").unwrap_err().to_string();
        assert_eq!(error, "f.txt: is not UTF-8 text (see byte 3); convert it first, for example with iconv");
        assert_eq!(text("\u{feff}a\u{feff}".into(), "f.txt").unwrap(), "a\u{feff}");
        let endless = read_limited(io::repeat(b'a')).unwrap();
        assert!(text(endless, "zeros").unwrap_err().to_string().starts_with("zeros: is larger than 16 MiB"));
    }
}
