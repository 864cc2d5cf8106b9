//! Where messages come from: the line editor, the lines of a pipe, or the command line.

use std::{
    io::{self, BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use hymba::{Error, limits};

use super::{
    editor::Editor,
    message::{Event, is_whole, joined},
};
use crate::cli::prompt::skip_byte_order_mark;

/// A source of messages.
pub struct Input {
    /// What comes before everything else.
    first: Option<String>,
    source: Source,
}

enum Source {
    Terminal(Box<Editor>),
    Pipe { lines: Receiver<io::Result<String>>, cancel: Arc<AtomicBool> },
    Nothing,
}

impl Input {
    /// One message, and then the end.
    pub fn once(message: String) -> Self {
        Self { first: Some(message), source: Source::Nothing }
    }

    /// A person at a terminal.
    pub fn terminal(first: Option<String>, cancel: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        Ok(Self { first, source: Source::Terminal(Box::new(Editor::new(cancel)?)) })
    }

    /// The lines of standard input. A thread of its own reads them, so that a signal ends the wait.
    pub fn pipe(first: Option<String>, cancel: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let (send, lines) = mpsc::sync_channel(16);
        let read = move || {
            let mut from = io::stdin().lock();
            let _ = skip_byte_order_mark(&mut from); // an error comes again with the first line
            while let Some(line) = limited_line(&mut from).transpose() {
                let last = line.is_err();
                if send.send(line).is_err() || last {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(read).context("cannot start the thread that reads standard input")?;
        Ok(Self { first, source: Source::Pipe { lines, cancel } })
    }

    /// Is a person typing?
    pub fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Terminal(_))
    }

    /// The next message or command. `prompt` is shown to a person, who finds `initial` typed already; `branches` are names
    /// that Tab completes.
    pub fn next(&mut self, prompt: &str, initial: &str, branches: Vec<String>) -> anyhow::Result<Event> {
        if let Some(first) = self.first.take() {
            return Ok(Event::Line(first));
        }
        match &mut self.source {
            Source::Nothing => Ok(Event::End),
            Source::Terminal(editor) => editor.read(prompt, initial, branches),
            Source::Pipe { lines, cancel } => {
                let Some(mut text) = next_line(lines, cancel)? else { return Ok(Event::End) };
                while !is_whole(&text) {
                    let Some(line) = next_line(lines, cancel)? else { break };
                    text = format!("{text}\n{line}");
                    limits::check_prompt(&text, "a message")?;
                }
                Ok(Event::Line(joined(&text)))
            }
        }
    }
}

/// The next line, without what ends it, or `None` at the end. A line that is longer than a message may be is an error.
fn limited_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    from.take(limits::PROMPT as u64 + 2).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop_if(|byte| *byte == b'\n').is_some() {
        line.pop_if(|byte| *byte == b'\r');
    }
    let text = String::from_utf8(line).map_err(|_| io::Error::other("a line is not UTF-8 text"))?;
    limits::check_prompt(&text, "a line").map_err(io::Error::other)?;
    Ok(Some(text))
}

/// The next line of a pipe, or `None` at its end.
fn next_line(lines: &Receiver<io::Result<String>>, cancel: &AtomicBool) -> anyhow::Result<Option<String>> {
    loop {
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => return Ok(Some(line.map_err(|e| Error::io("cannot read", "standard input", e))?)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) if cancel.load(Ordering::Relaxed) => return Err(Error::Cancelled.into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_an_end() {
        let mut pipe = &b"one\r\ntwo\n\nlast"[..];
        let mut lines = Vec::new();
        while let Some(line) = limited_line(&mut pipe).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "two", "", "last"]);
        let mut endless = io::BufReader::new(io::repeat(b'a'));
        let error = limited_line(&mut endless).unwrap_err().to_string();
        assert!(error.starts_with("a line has 16777218 bytes, but 16 MiB are the limit"), "{error}");
    }
}
