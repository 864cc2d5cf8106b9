//! A bar that appears only for slow operations.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use indicatif::ProgressBar;

use super::style::{Unit, style};
use crate::cli::terminal;

/// Progress on standard error, if that is a terminal.
pub struct Bar {
    unit: Unit,
    label: &'static str,
    on: bool,
    since: Cell<Instant>,
    bar: RefCell<Option<ProgressBar>>,
}

impl Bar {
    /// Returns a bar for tokens being processed, if `on`.
    pub fn tokens(on: bool) -> Self {
        Self::new(Unit::Items, "tokens processed", on)
    }

    /// Returns a bar for prompts being answered.
    pub fn prompts(on: bool) -> Self {
        Self::new(Unit::Items, "prompts", on)
    }

    /// Returns a bar for a file being loaded.
    pub fn bytes(on: bool) -> Self {
        Self::new(Unit::Bytes, "loading the model", on)
    }

    fn new(unit: Unit, label: &'static str, on: bool) -> Self {
        let (since, bar) = (Cell::new(Instant::now()), RefCell::default());
        Self { unit, label, on: on && terminal::draws(), since, bar }
    }

    /// Sets the position to `done` of `total`.
    pub fn show(&self, done: usize, total: usize) {
        const MOMENT: Duration = Duration::from_millis(300);
        if done == total {
            self.clear();
            self.since.set(Instant::now());
        } else if self.on && self.since.get().elapsed() > MOMENT {
            let mut bar = self.bar.borrow_mut();
            let bar = bar.get_or_insert_with(|| {
                let before = done as f64 / total.max(1) as f64;
                let style = style(self.unit, terminal::err_width(), before);
                ProgressBar::new(total as u64).with_style(style).with_message(self.label)
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
