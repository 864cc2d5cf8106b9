//! A progress bar that appears only for slow operations.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal;

/// Progress on standard error, if that is a terminal.
pub struct Bar {
    template: &'static str,
    on: bool,
    since: Cell<Instant>,
    bar: RefCell<Option<ProgressBar>>,
}

impl Bar {
    /// Returns a bar for tokens being processed, if `on`.
    pub fn tokens(on: bool) -> Self {
        Self::new("processing {bar:20} {pos} of {len} tokens", on)
    }

    /// Returns a bar for prompts being answered.
    pub fn prompts(on: bool) -> Self {
        Self::new("{bar:20} {pos} of {len} prompts {eta}", on)
    }

    /// Returns a bar for a file being loaded.
    pub fn bytes(on: bool) -> Self {
        Self::new("loading the model {bar:20} {percent} % of {decimal_total_bytes}", on)
    }

    fn new(template: &'static str, on: bool) -> Self {
        Self { template, on: on && terminal::draws(), since: Cell::new(Instant::now()), bar: RefCell::default() }
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
                let style = ProgressStyle::with_template(self.template);
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
