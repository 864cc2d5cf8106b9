//! Where `run` shows the text.

use std::io::{self, IsTerminal, StdoutLock, Write};

use crate::cli::terminal::printable;

/// Standard output.
pub struct Output {
    out: StdoutLock<'static>,
    /// Whether the text is not shown: --json has standard output for itself.
    json: bool,
    /// Whether a person reads along.
    terminal: bool,
    ends_line: bool,
}

impl Output {
    /// Takes hold of standard output.
    pub fn new(json: bool) -> Self {
        let out = io::stdout().lock();
        Self { terminal: out.is_terminal(), out, json, ends_line: true }
    }

    /// Shows a piece of the text.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        let text = if self.terminal { printable(text) } else { text.into() };
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Gives a person a new line for what comes next, be it an error; a file gets the text as it is.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.ends_line && self.terminal { writeln!(self.out) } else { Ok(()) }
    }

    /// Prints the object that --json asks for.
    pub fn print(&mut self, object: &serde_json::Value) -> io::Result<()> {
        writeln!(self.out, "{object}")?;
        self.out.flush()
    }
}
