//! Where a prompt comes from: an argument, a file, or standard input.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use hymba::{Error, Result, limits};

use super::usage::Usage;

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
    pub fn read(&self, cancel: &AtomicBool, needed: bool) -> anyhow::Result<String> {
        if let Some(path) = &self.file {
            return Ok(read_file(path)?);
        }
        let none = |what: &str| Usage(format!("{what}; give a prompt: hymba run \"Once upon a time\""));
        match self.text.as_deref().or(self.prompt.as_deref()) {
            Some("-") => Ok(standard_input(cancel)?),
            Some(text) => Ok(text.into()),
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
pub fn read_file(path: &Path) -> Result<String> {
    read_whole(path).map(without_line_break)
}

/// The text of a file.
pub fn read_whole(path: &Path) -> Result<String> {
    let bytes = File::open(path).and_then(read_limited).map_err(|e| Error::io("cannot read", path, e))?;
    text(bytes, &path.display().to_string())
}

/// Everything on standard input. A thread of its own reads it, so that a signal ends the wait.
pub fn standard_input(cancel: &AtomicBool) -> Result<String> {
    const NAME: &str = "standard input";
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(read_limited(io::stdin())));
    loop {
        match receive.recv_timeout(Duration::from_millis(20)) {
            Ok(bytes) => {
                return text(bytes.map_err(|e| Error::io("cannot read", NAME, e))?, NAME).map(without_line_break);
            }
            Err(RecvTimeoutError::Timeout) if !cancel.load(Ordering::Relaxed) => {}
            Err(_) => return Err(Error::Cancelled),
        }
    }
}

/// All bytes, or one more than may be.
fn read_limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limits::PROMPT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of `bytes`; `name` says where they are from.
fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    if bytes.len() > limits::PROMPT {
        let limit = limits::PROMPT >> 20;
        return Err(Error::format(
            name,
            format!("is larger than {limit} MiB, too much for a prompt; give a part of it"),
        ));
    }
    utf8(bytes, name)
}

fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    text
}

/// `bytes` as text, all of it.
pub fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(name, format!("is not UTF-8 text (see byte {at}); convert it first, for example with iconv"))
    })
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
        let endless = read_limited(io::repeat(b'a')).unwrap();
        assert!(text(endless, "zeros").unwrap_err().to_string().starts_with("zeros: is larger than 16 MiB"));
    }
}
