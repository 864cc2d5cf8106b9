//! Conversion progress: a bar at a terminal, else an occasional line.

use std::{
    fmt,
    time::{Duration, Instant},
};

use hymba::quant::{Calibration, Event, Options, Rounding};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use crate::cli::terminal;

/// Interval between lines without a terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// The progress of a conversion.
pub struct Progress {
    quiet: bool,
    bar: ProgressBar,
    bytes_style: ProgressStyle,
    steps_style: ProgressStyle,
    /// Estimated rounding time per weight, in nanoseconds.
    nanoseconds: f64,
    done: u64,
    total: u64,
    phase: Instant,
    last_line: Instant,
}

impl Progress {
    /// Starts tracking a conversion with `options` on `threads` threads.
    pub fn new(quiet: bool, options: &Options, threads: usize) -> anyhow::Result<Self> {
        let bar = if quiet || !terminal::draws() { ProgressBar::hidden() } else { ProgressBar::no_length() };
        let bytes_style = "{bar:20} {percent:>3} % {left:>5} left  {decimal_bytes_per_sec:>10}  {wide_msg}";
        let steps_style = "{bar:20} {percent:>3} % {left:>5} left  {wide_msg}";
        Ok(Self {
            quiet,
            bar,
            bytes_style: style(bytes_style)?,
            steps_style: style(steps_style)?,
            nanoseconds: nanoseconds(options) / threads as f64,
            done: 0,
            total: 0,
            phase: Instant::now(),
            last_line: Instant::now(),
        })
    }

    /// Shows a conversion event.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Opened { parameters } => self.foretell(parameters),
            Event::Calibrate { steps } => self.begin(self.steps_style.clone(), steps),
            Event::Begin { bytes } => self.begin(self.bytes_style.clone(), bytes),
            Event::Calibrated { what, steps } => self.advance(what, steps),
            Event::Converted { tensor, bytes } => self.advance(tensor, bytes),
            Event::MetaState => self.bar.set_message("state after the meta tokens"),
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Shows the estimated time, if it is long.
    fn foretell(&self, parameters: u64) {
        let time = Duration::from_secs_f64(self.nanoseconds * parameters as f64 / 1e9);
        if !self.quiet && time > Duration::from_secs(10) {
            terminal::note(&format!("this takes about {}", HumanDuration(time)));
        }
    }

    fn begin(&mut self, style: ProgressStyle, total: u64) {
        self.bar.set_style(style);
        self.bar.reset();
        self.bar.set_length(total);
        (self.done, self.total, self.phase) = (0, total, Instant::now());
    }

    fn advance(&mut self, what: &str, more: u64) {
        if self.bar.message() != what {
            self.bar.set_message(what.to_owned());
        }
        self.bar.inc(more);
        self.done += more;
        if !self.quiet && self.bar.is_hidden() && self.last_line.elapsed() > PAUSE {
            self.last_line = Instant::now();
            let fraction = self.done as f64 / self.total.max(1) as f64;
            let left = HumanDuration(left(self.phase.elapsed(), fraction));
            terminal::note(&format!("{:.0} % ({what}), {left} left", 100.0 * fraction));
        }
    }
}

fn style(template: &str) -> anyhow::Result<ProgressStyle> {
    let show_left = |state: &ProgressState, to: &mut dyn fmt::Write| {
        let left = left(state.elapsed(), state.fraction().into());
        let _ = write!(to, "{:#}", HumanDuration(left)); // writing to a string cannot fail
    };
    Ok(ProgressStyle::with_template(template)?.with_key("left", show_left))
}

/// Estimated from the overall average: a layer's phases differ in speed.
fn left(elapsed: Duration, fraction: f64) -> Duration {
    let done = fraction.clamp(1e-3, 1.0);
    elapsed.mul_f64((1.0 - done) / done)
}

/// Returns the approximate time per weight on one thread, measured on x86-64 with AVX2 on models with 48 million to 1.5
/// billion weights.
fn nanoseconds(options: &Options) -> f64 {
    let read = match &options.calibration {
        Some(Calibration::Text(sample)) => sample.tokens.min(sample.text.len() / 3) as f64,
        _ => 0.0,
    };
    match options.rounding {
        Rounding::Nearest => 10.0,
        Rounding::Search => SEARCH + 0.03 * read,
        Rounding::Gptq(_) => SEARCH + 0.09 * read,
    }
}

const SEARCH: f64 = 60.0;
