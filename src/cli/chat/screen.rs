//! Interactive output: replies, notes, progress of prompt processing. A pipe receives replies only.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Value, json};

use hymba::text::{Call, ReplyParser, ReplyPart, Tools};

use super::markdown::Markdown;
use crate::cli::{
    json::event,
    progress::Bar,
    terminal, tools,
    wrap::{Wrap, wrapped},
};

/// When to use colors.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ColorChoice {
    /// At a terminal, unless NO_COLOR is set or TERM is dumb
    Auto,
    Always,
    Never,
}

/// Where things are shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub color: bool,
    /// Whether the session is interactive.
    pub terminal: bool,
    pub quiet: bool,
    /// Whether standard output receives JSON events.
    json: bool,
}

impl Screen {
    /// Returns the output for a terminal, if `terminal`, or for a pipe; with events, if `json`.
    pub fn new(color: ColorChoice, terminal: bool, quiet: bool, json: bool) -> Self {
        let color = match color {
            ColorChoice::Auto => terminal::has_colors(),
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self { color: color && !json, terminal, quiet, json }
    }

    /// Shows a note in interactive sessions.
    pub fn note(&self, message: &str) {
        if self.terminal {
            terminal::note(message);
        }
    }

    /// Shows a note.
    pub fn notify(&self, message: &str) {
        if !self.quiet {
            terminal::note(message);
        }
    }

    /// Shows a warning.
    pub fn warn(&self, message: &str) {
        if !self.quiet {
            terminal::warn(message);
        }
    }

    /// Shows a dimmed line in interactive sessions.
    pub fn small(&self, line: &str) {
        if !self.quiet && self.terminal {
            terminal::small_print(line, self.color);
        }
    }

    /// Prints the output of a command.
    pub fn print(&self, text: &str) -> io::Result<()> {
        if self.json {
            return self.event("output", json!({ "text": text }));
        }
        let mut out = terminal::out();
        out.write_all(wrapped(text, self.width()).as_bytes())?;
        out.flush()
    }

    /// Returns the terminal width for the output of commands; `None` without a terminal.
    pub fn width(&self) -> Option<usize> {
        if self.json { None } else { terminal::out_width() }
    }

    /// Prints an event, if events are on.
    pub fn event(&self, name: &str, object: Value) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut out = terminal::out();
        out.json(&event(name, object), false)?;
        out.flush()
    }

    /// Shows a past turn.
    pub fn turn(&self, user: &str, reply: &str) -> io::Result<()> {
        let text = format!("{PROMPT}{}\n{}\n\n", user.trim_end(), reply.trim_end());
        if self.json || !self.color {
            return self.print(&text);
        }
        let mut out = terminal::out();
        out.style(PROMPT_STYLE)?;
        out.write_all(PROMPT.as_bytes())?;
        out.style("\x1b[0m")?;
        out.write_all(&wrapped(&text, self.width()).as_bytes()[PROMPT.len()..])?;
        out.flush()
    }

    /// Begins a reply that may call `tools`: calls are formatted at a terminal, and unchanged in a pipe.
    pub fn reply(&self, tools: Option<&Tools>) -> ReplyWriter {
        let wrap = Wrap::new(self.width());
        let calls = tools.filter(|_| self.terminal).map(ReplyParser::new);
        ReplyWriter { screen: *self, markdown: self.color.then(Markdown::default), wrap, calls, ends_line: true }
    }

    /// Starts showing progress.
    pub fn bar(&self) -> Bar {
        Bar::tokens(self.terminal)
    }
}

/// Returns the input prompt.
pub const PROMPT: &str = "> ";
/// Returns the style of the input prompt.
pub const PROMPT_STYLE: &str = "\x1b[1;36m";

/// Precedes a tool call.
pub const CALL: &str = "→ ";
/// The style of a tool call.
const CALL_STYLE: &str = "\x1b[36m";

/// A reply being streamed to standard output.
pub struct ReplyWriter {
    screen: Screen,
    markdown: Option<Markdown>,
    wrap: Wrap,
    calls: Option<ReplyParser>,
    ends_line: bool,
}

impl ReplyWriter {
    /// Shows the next piece.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        if self.screen.json {
            return self.screen.event("text", json!({ "text": text }));
        }
        match self.calls.as_mut().map(|calls| calls.push(text)) {
            Some(parts) => self.write_parts(parts),
            None => self.write_text(text),
        }
    }

    fn write_parts(&mut self, parts: Vec<ReplyPart>) -> io::Result<()> {
        parts.into_iter().try_for_each(|part| match part {
            ReplyPart::Text(text) => self.write_text(&text),
            ReplyPart::Call(call) => self.write_call(&call),
        })
    }

    /// Shows a call on a line of its own.
    fn write_call(&mut self, call: &Call) -> io::Result<()> {
        self.end_line()?;
        let call = wrapped(&format!("{CALL}{}\n", tools::shown(call)), self.screen.width());
        let (on, off) = if self.screen.color { (CALL_STYLE, "\x1b[0m") } else { ("", "") };
        let mut out = terminal::out();
        out.style(on)?;
        out.write_all(call.as_bytes())?;
        out.style(off)?;
        out.flush()
    }

    fn write_text(&mut self, text: &str) -> io::Result<()> {
        self.ends_line = text.ends_with('\n');
        let mut out = terminal::out();
        let shown = if out.is_terminal() { terminal::printable(text) } else { text.into() };
        let styled = self.markdown.as_mut().map(|markdown| markdown.push(&shown));
        // Styles and line breaks are ours to add: control characters from the model are escaped.
        out.style(&self.wrap.push(styled.as_deref().unwrap_or(&shown)))?;
        out.flush()
    }

    /// Ends the reply and its line.
    pub fn finish(mut self) -> io::Result<()> {
        if let Some(calls) = self.calls.take() {
            self.write_parts(calls.finish())?;
        }
        self.end_line()
    }

    fn end_line(&mut self) -> io::Result<()> {
        let end = self.markdown.as_mut().map(Markdown::finish).unwrap_or_default();
        let mut end = self.wrap.push(&end) + &self.wrap.finish();
        if !std::mem::replace(&mut self.ends_line, true) {
            end.push('\n');
        }
        let mut out = terminal::out();
        out.style(&end)?;
        out.flush()
    }
}
