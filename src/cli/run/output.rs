//! Where `run` shows the text.

use std::io::{self, Write};

use crate::cli::terminal::{self, Out};

/// Standard output.
pub struct Output {
    out: Out,
    /// Whether the text is not shown: --json has standard output for itself.
    json: bool,
    ends_line: bool,
}

impl Output {
    /// Takes hold of standard output.
    pub fn new(json: bool) -> Self {
        Self { out: terminal::out(), json, ends_line: true }
    }

    /// Shows a piece of the text.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        self.ends_line = text.ends_with('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Gives a person a new line for what comes next, be it an error; a file gets the text as it is.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.ends_line && self.out.is_terminal() { writeln!(self.out) } else { Ok(()) }
    }

    /// Prints the object that --json asks for.
    pub fn print(&mut self, object: &serde_json::Value) -> io::Result<()> {
        self.out.json(object, false)?;
        self.out.flush()
    }
}
