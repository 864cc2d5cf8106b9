//! Sources of messages: the line editor, the lines of a pipe, or the command line.

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
    message::{Draft, Event},
};
use crate::cli::prompt::skip_byte_order_mark;

/// A source of messages.
pub struct Input {
    /// The first message.
    first: Option<String>,
    source: Source,
}

enum Source {
    Terminal(Box<Editor>),
    Pipe {
        lines: Receiver<io::Result<Line>>,
        /// Whether lines are parsed as commands.
        commands: bool,
        cancel: Arc<AtomicBool>,
    },
    Nothing,
}

/// A line, with an error if it is too long or not UTF-8; then the text is incomplete or lossy.
struct Line {
    text: String,
    refused: Option<Error>,
}

impl Input {
    /// Returns a single message.
    pub fn once(message: String) -> Self {
        Self { first: Some(message), source: Source::Nothing }
    }

    /// Interactive input at a terminal.
    pub fn terminal(first: Option<String>, color: bool, cancel: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        Ok(Self { first, source: Source::Terminal(Box::new(Editor::new(color, cancel)?)) })
    }

    /// Lines of standard input, parsed as commands if `commands`. They are read on a separate thread so that a signal
    /// can end the wait.
    pub fn pipe(first: Option<String>, commands: bool, cancel: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let (send, lines) = mpsc::sync_channel(16);
        let read = move || {
            let mut from = io::stdin().lock();
            let _ = skip_byte_order_mark(&mut from); // an error repeats with the first line
            let mut from = Lines { from, within: false };
            while let Some(line) = from.next().transpose() {
                let last = line.is_err();
                if send.send(line).is_err() || last {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(read).context("cannot start a thread to read standard input")?;
        Ok(Self { first, source: Source::Pipe { lines, commands, cancel } })
    }

    /// Whether input is interactive.
    pub fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Terminal(_))
    }

    /// Whether lines are parsed as commands.
    pub fn has_commands(&self) -> bool {
        matches!(self.source, Source::Terminal(_) | Source::Pipe { commands: true, .. })
    }

    /// Returns the next message or command. At a terminal, `prompt` is shown, the line starts with `initial`, and Tab
    /// completes `branches`.
    pub fn next(&mut self, prompt: &str, initial: &str, branches: Vec<String>) -> anyhow::Result<Event> {
        if let Some(first) = self.first.take() {
            return Ok(Event::Message(first));
        }
        match &mut self.source {
            Source::Nothing => Ok(Event::End),
            Source::Terminal(editor) => editor.read(prompt, initial, branches),
            Source::Pipe { lines, commands, cancel } => {
                let mut draft = Draft::default();
                while let Some(Line { text, refused }) = next_line(lines, cancel)? {
                    match refused {
                        None => draft.push(&text),
                        Some(reason) => draft.refuse(&text, reason),
                    }
                    if draft.is_complete() {
                        break;
                    }
                }
                Ok(draft.finish(*commands))
            }
        }
    }
}

/// Splits a reader into lines.
struct Lines<R> {
    from: R,
    /// Whether the rest of an overlong line is still to be skipped.
    within: bool,
}

impl<R: BufRead> Lines<R> {
    /// Returns the next line without its line break, or `None` at the end.
    fn next(&mut self) -> io::Result<Option<Line>> {
        if std::mem::take(&mut self.within) {
            self.from.skip_until(b'\n')?;
        }
        let mut line = Vec::new();
        (&mut self.from).take(limits::PROMPT as u64 + 2).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop_if(|byte| *byte == b'\n').is_some() {
            line.pop_if(|byte| *byte == b'\r');
        } else {
            self.within = true;
        }
        let of_input = |problem: &str| Error::format("standard input", problem);
        let long = limits::check_length(line.len(), "a line").map_err(|e| of_input(&e.to_string()));
        let (text, refused) = match String::from_utf8(line) {
            Ok(text) => (text, long.err()),
            Err(e) => {
                let at = e.utf8_error().valid_up_to();
                let bad = of_input(&format!("a line is not UTF-8 text (see its byte {at})"));
                (String::from_utf8_lossy(e.as_bytes()).into_owned(), Some(long.err().unwrap_or(bad)))
            }
        };
        Ok(Some(Line { text, refused }))
    }
}

/// Returns the next line of the pipe, or `None` at its end.
fn next_line(lines: &Receiver<io::Result<Line>>, cancel: &AtomicBool) -> anyhow::Result<Option<Line>> {
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
    fn lines_have_a_maximum_length() {
        let long = "a".repeat(limits::PROMPT + 9);
        let pipe = [b"one\r\ntwo\n\nca\xE9f\xE9\n", long.as_bytes(), b"\nlast"].concat();
        let mut lines = Lines { from: &pipe[..], within: false };
        let mut read = Vec::new();
        while let Some(Line { text, refused }) = lines.next().unwrap() {
            read.push((text.len(), refused.map(|reason| reason.to_string()).unwrap_or_default()));
        }
        let bad = "standard input: a line is not UTF-8 text (see its byte 2)";
        let too_long = "standard input: a line has 16000002 bytes; the limit is 16 MB; use a part of it";
        let expected = [(3, ""), (3, ""), (0, ""), (9, bad), (limits::PROMPT + 2, too_long), (4, "")];
        assert!(read.iter().map(|(length, reason)| (*length, reason.as_str())).eq(expected), "{read:?}");
        let mut endless = Lines { from: io::BufReader::new(io::repeat(b'a')), within: false };
        assert!(endless.next().unwrap().unwrap().refused.is_some());
    }
}
