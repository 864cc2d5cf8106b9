//! Output of `run`.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::cli::{
    json::event,
    terminal::{self, Out, printable},
    wrap::Wrap,
};

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// Plain text, streamed.
    Text,
    /// One JSON object at the end.
    Json,
    /// One JSON event per line.
    JsonLines,
}

/// Standard output.
pub struct Output {
    out: Out,
    format: Format,
    wrap: Wrap,
    ends_line: bool,
}

impl Output {
    /// Locks standard output.
    pub fn new(format: Format) -> Self {
        Self { out: terminal::out(), format, wrap: Wrap::new(terminal::out_width()), ends_line: true }
    }

    /// Output format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Shows the prompt.
    pub fn show_prompt(&mut self, text: &str) -> io::Result<()> {
        if self.format == Format::JsonLines { Ok(()) } else { self.show(text) }
    }

    /// Shows a piece of the text.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() || self.format == Format::Json {
            return Ok(());
        }
        if self.format == Format::JsonLines {
            return self.event("text", json!({ "text": text }));
        }
        self.ends_line = text.ends_with('\n');
        if self.out.is_terminal() {
            let text = self.wrap.push(&printable(text));
            self.out.style(&text)?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        self.out.flush()
    }

    /// Ends the line at a terminal, where a message may follow; a file gets the text unchanged.
    pub fn finish(&mut self) -> io::Result<()> {
        let rest = self.wrap.finish();
        self.out.style(&rest)?;
        self.out.flush()?;
        if std::mem::replace(&mut self.ends_line, true) {
            return Ok(());
        }
        if self.out.is_terminal() {
            return writeln!(self.out);
        }
        terminal::new_line();
        Ok(())
    }

    /// Prints the object of --json, or the last one of --jsonl.
    pub fn print(&mut self, object: Value) -> io::Result<()> {
        if self.format == Format::JsonLines {
            return self.event("end", object);
        }
        self.out.json(&object, false)?;
        self.out.flush()
    }

    /// Prints an event with the fields of `object`.
    fn event(&mut self, name: &str, object: Value) -> io::Result<()> {
        self.out.json(&event(name, object), false)?;
        self.out.flush()
    }
}
