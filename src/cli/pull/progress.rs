//! Progress of a pull.

use std::io::{self, IsTerminal};

use hymba::{
    hub::{Event, Plan},
    quant,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::terminal::{note, printable};

/// A bar at a terminal, else a line per file and per problem.
pub struct Progress {
    bar: ProgressBar,
    download: ProgressStyle,
    convert: ProgressStyle,
    quiet: bool,
    /// Messages shown once.
    said: String,
}

impl Progress {
    pub fn new(quiet: bool) -> anyhow::Result<Self> {
        let visible = !quiet && io::stderr().is_terminal();
        let style = ProgressStyle::with_template;
        Ok(Self {
            bar: if visible { ProgressBar::no_length() } else { ProgressBar::hidden() },
            download: style("{bar:20} {percent:>3} % {decimal_bytes_per_sec:>11} {eta:>4} left  {wide_msg}")?,
            convert: style("{bar:20} {percent:>3} % {decimal_bytes_per_sec:>11}  {wide_msg}")?,
            quiet,
            said: String::new(),
        })
    }

    /// Starts a download.
    pub fn begin_download(&mut self, plan: &Plan) {
        self.bar.set_style(self.download.clone());
        self.bar.set_length(plan.bytes());
        self.bar.set_position(plan.bytes() - plan.missing());
        self.bar.reset_eta();
    }

    /// Shows a download event.
    pub fn download(&mut self, event: &Event) {
        match event {
            Event::File { path, .. } => {
                self.message(path);
                if self.bar.is_hidden() {
                    self.print(&format!("downloading {path}"));
                }
            }
            Event::Fetched { bytes } => self.bar.inc(*bytes),
            Event::Again { path, bytes } => {
                self.bar.dec(*bytes);
                self.print(&format!("{path}: the partial download cannot be resumed; starting over"));
            }
            Event::Waiting { path } => self.print(&format!("another program is downloading {path}; waiting for it")),
            Event::Retry { path, why, pause } => {
                self.print(&format!("{path}: {why}; trying again in {:.1} s", pause.as_secs_f64()));
            }
            Event::Checking { path } => self.message(&format!("checking {path}")),
        }
    }

    /// Shows a conversion event.
    pub fn convert(&mut self, event: quant::Event) {
        match event {
            quant::Event::Begin { bytes } => {
                self.bar.set_style(self.convert.clone());
                self.bar.reset();
                self.bar.set_length(bytes);
            }
            quant::Event::Converted { tensor, bytes } => {
                self.message(tensor);
                self.bar.inc(bytes);
            }
            quant::Event::MetaState => self.message("state after the meta tokens"),
            quant::Event::Opened { .. } => (),
            quant::Event::Calibrate { .. } | quant::Event::Calibrated { .. } => (), // pull never calibrates
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn message(&self, text: &str) {
        if self.bar.message() != text {
            self.bar.set_message(printable(text).into_owned());
        }
    }

    /// Four connections may report the same problem at once.
    fn print(&mut self, text: &str) {
        if !self.quiet && self.said != text {
            self.bar.suspend(|| note(text));
            self.said = text.into();
        }
    }
}
