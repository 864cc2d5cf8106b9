//! What a person sees: replies, notes, a bar when reading takes time. A pipe sees the replies only.

use std::{
    cell::{Cell, RefCell},
    env,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::markdown::Markdown;
use crate::cli::terminal;

/// When there are colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ColorChoice {
    /// At a terminal, unless NO_COLOR is set.
    Auto,
    Always,
    Never,
}

/// Where things are shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    color: bool,
    /// Is a person there?
    pub terminal: bool,
    quiet: bool,
}

impl Screen {
    /// The screen of a person, if `terminal`, or else a pipe.
    pub fn new(color: ColorChoice, terminal: bool, quiet: bool) -> Self {
        let unset = |name| env::var_os(name).is_none_or(|value| value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match color {
            ColorChoice::Auto => io::stdout().is_terminal() && unset("NO_COLOR") && !dumb,
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self { color, terminal, quiet }
    }

    /// Says something that a person may want to know.
    pub fn note(&self, message: &str) {
        if self.terminal {
            terminal::note(message);
        }
    }

    /// Says something that matters to whoever started this.
    pub fn warn(&self, message: &str) {
        if !self.quiet {
            terminal::note(message);
        }
    }

    /// Shows a line of small print to a person.
    pub fn small(&self, line: &str) {
        if !self.quiet && self.terminal {
            terminal::small_print(line, self.color);
        }
    }

    /// Begins a reply.
    pub fn reply(&self) -> ReplyWriter {
        ReplyWriter { markdown: self.color.then(Markdown::default), ends_line: true }
    }

    /// Begins to wait for reading.
    pub fn bar(&self) -> Bar {
        Bar {
            on: self.terminal && io::stderr().is_terminal(),
            since: Cell::new(Instant::now()),
            bar: RefCell::default(),
        }
    }
}

/// A reply on its way to standard output.
pub struct ReplyWriter {
    markdown: Option<Markdown>,
    ends_line: bool,
}

impl ReplyWriter {
    /// Shows the next piece.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        self.ends_line = text.ends_with('\n');
        let mut out = terminal::out();
        match &mut self.markdown {
            // What it adds are styles; what the model says must not be any.
            Some(markdown) if out.is_terminal() => out.style(&markdown.push(&terminal::printable(text)))?,
            Some(markdown) => out.style(&markdown.push(text))?,
            None => out.write_all(text.as_bytes())?,
        }
        out.flush()
    }

    /// Ends the reply, and its line.
    pub fn finish(mut self) -> io::Result<()> {
        let mut end = self.markdown.as_mut().map(Markdown::finish).unwrap_or_default();
        if !self.ends_line {
            end.push('\n');
        }
        let mut out = terminal::out();
        out.style(&end)?;
        out.flush()
    }
}

/// A bar that appears when something takes longer than a moment.
pub struct Bar {
    on: bool,
    since: Cell<Instant>,
    bar: RefCell<Option<ProgressBar>>,
}

impl Bar {
    /// `done` of `total` tokens are read.
    pub fn show(&self, done: usize, total: usize) {
        const MOMENT: Duration = Duration::from_millis(300);
        if done == total {
            self.clear();
            self.since.set(Instant::now());
        } else if self.on && self.since.get().elapsed() > MOMENT {
            let mut bar = self.bar.borrow_mut();
            let bar = bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("reading {bar:20} {pos} of {len} tokens");
                ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_position(done as u64);
        }
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
