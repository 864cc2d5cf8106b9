//! Progress of long operations: a bar at a terminal, else an occasional line.

mod late;
mod style;

use std::time::{Duration, Instant};

use hymba::quant::Event;
use indicatif::{HumanDuration, ProgressBar};

pub use self::late::Bar;
use self::style::{Unit, remaining, style};
use super::terminal;

/// Interval between lines without a terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// The progress of work in phases.
pub struct Progress {
    quiet: bool,
    bar: ProgressBar,
    /// The current work.
    label: String,
    /// The amounts done before the phase and now, and the total.
    before: u64,
    done: u64,
    total: u64,
    start: Instant,
    last_line: Instant,
    /// The last message, which is not repeated.
    last_message: String,
}

impl Progress {
    /// Shows progress on standard error, unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet || !terminal::draws() { ProgressBar::hidden() } else { ProgressBar::no_length() };
        let now = Instant::now();
        let (label, last_message) = (String::new(), String::new());
        Self { quiet, bar, label, before: 0, done: 0, total: 0, start: now, last_line: now, last_message }
    }

    /// Starts a phase of `total` bytes, of which `done` are already present.
    pub fn begin_bytes(&mut self, total: u64, done: u64) {
        self.start(Unit::Bytes, total, done);
    }

    /// Starts a phase of `total` steps.
    pub fn begin_steps(&mut self, total: u64) {
        self.start(Unit::Steps, total, 0);
    }

    fn start(&mut self, unit: Unit, total: u64, done: u64) {
        self.bar.set_style(style(unit, terminal::err_width(), done as f64 / total.max(1) as f64));
        self.bar.reset();
        self.bar.set_length(total);
        self.bar.set_position(done);
        // Bytes that were already present do not count towards the speed.
        self.bar.tick();
        self.bar.reset_eta();
        (self.before, self.done, self.total, self.start) = (done, done, total, Instant::now());
    }

    /// Shows what is being worked on.
    pub fn message(&mut self, label: &str) {
        if self.label != label {
            self.bar.set_message(terminal::printable(label).into_owned());
            self.label = label.into();
        }
    }

    /// Whether there is a bar, which shows messages.
    pub fn has_bar(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Adds bytes or steps that are done.
    pub fn advance(&mut self, more: u64) {
        self.bar.inc(more);
        self.done += more;
        if !self.quiet && !self.has_bar() && self.last_line.elapsed() > PAUSE {
            self.last_line = Instant::now();
            let fraction = |done: u64| done as f64 / self.total.max(1) as f64;
            let remaining = remaining(self.start.elapsed(), fraction(self.before), fraction(self.done));
            let remaining = remaining.map_or(String::new(), |remaining| format!(", {} left", HumanDuration(remaining)));
            let (percent, label) = (100.0 * fraction(self.done), &self.label);
            terminal::note(&format!("{percent:.0} % ({label}){remaining}"));
        }
    }

    /// Subtracts bytes that have to be processed again.
    pub fn subtract(&mut self, bytes: u64) {
        self.bar.dec(bytes);
        self.done = self.done.saturating_sub(bytes);
        self.before = self.before.min(self.done);
    }

    /// Shows an event of a conversion.
    pub fn convert(&mut self, event: Event) {
        match event {
            Event::Opened { .. } => (),
            Event::Calibrate { steps } => self.begin_steps(steps),
            Event::Begin { bytes } => self.begin_bytes(bytes, 0),
            Event::Calibrated { label, steps } => {
                self.message(label);
                self.advance(steps);
            }
            Event::Converted { tensor, bytes } => {
                self.message(tensor);
                self.advance(bytes);
            }
            Event::MetaState => self.message("state after the meta tokens"),
        }
    }

    /// Writes a message above the bar, once: several threads may report the same problem.
    pub fn note(&mut self, text: &str) {
        if !self.quiet && self.last_message != text {
            self.bar.suspend(|| terminal::note(text));
            self.last_message = text.into();
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
