//! Rounding and calibration flags.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use hymba::quant::{Calibration, Gptq, Order, Rounding, Sample};

use crate::cli::{options::count, prompt::read_text, usage::Usage};

/// Rounding flags.
#[derive(clap::Args)]
#[command(next_help_heading = "Rounding")]
pub struct RoundingArgs {
    /// Rounding method [default: gptq with --calibrate, else search]
    #[arg(long, value_enum)]
    rounding: Option<Kind>,
    /// Calibration text (UTF-8), similar to the intended input; must not overlap the evaluation text
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Load a saved importance matrix
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    calibration: Option<PathBuf>,
    /// Save the importance matrix (GGUF, as llama.cpp's imatrix); rounds by search
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub save_calibration: Option<PathBuf>,
    /// Maximum number of calibration tokens, sampled evenly [default: 32768]
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = count(2..=1 << 30))]
    calibration_tokens: Option<usize>,
    /// Length of a calibration sequence, in tokens [default: 512]
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = count(2..=1 << 16))]
    calibration_context: Option<usize>,
    /// GPTQ damping, relative to the mean diagonal of the Hessian [default: 0.01]
    #[arg(long, value_name = "X", value_parser = damping)]
    damping: Option<f32>,
    /// Order in which GPTQ rounds columns [default: largest]
    #[arg(long, value_enum)]
    column_order: Option<ColumnOrder>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Kind {
    /// Round to nearest, identical to ggml
    Nearest,
    /// Search for the scale with the least error, weighted by the importance matrix if there is one
    Search,
    /// GPTQ error compensation (needs --calibrate); minutes to hours
    Gptq,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum ColumnOrder {
    /// Blocks with the largest inputs first
    Largest,
    /// From the first to the last
    Stored,
}

fn damping(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(v) if (0.0..=10.0).contains(&v) => Ok(v),
        _ => Err("must be a number from 0 to 10".into()),
    }
}

impl RoundingArgs {
    /// Returns the requested rounding.
    pub fn rounding(&self) -> anyhow::Result<Rounding> {
        let has_text = self.calibrate.is_some();
        let wrong = |problem: &str| Err(Usage(problem.into()).into());
        let by_default = if has_text && self.save_calibration.is_none() { Kind::Gptq } else { Kind::Search };
        let kind = self.rounding.unwrap_or(by_default);
        if kind != Kind::Gptq && (self.damping.is_some() || self.column_order.is_some()) {
            return wrong("--damping and --column-order apply to --rounding gptq only");
        }
        match kind {
            Kind::Nearest if has_text || self.calibration.is_some() => {
                wrong("--rounding nearest does not use calibration; use search or gptq")
            }
            Kind::Gptq if !has_text => wrong("--rounding gptq needs a calibration text; add --calibrate FILE"),
            Kind::Gptq if self.save_calibration.is_some() => {
                wrong("--save-calibration cannot store what --rounding gptq measures; use --rounding search")
            }
            Kind::Nearest => Ok(Rounding::Nearest),
            Kind::Search => Ok(Rounding::Search),
            Kind::Gptq => {
                let order = match self.column_order {
                    None | Some(ColumnOrder::Largest) => Order::Largest,
                    Some(ColumnOrder::Stored) => Order::Stored,
                };
                let damping = self.damping.unwrap_or(Gptq::default().damping);
                Ok(Rounding::Gptq(Gptq { damping, order }))
            }
        }
    }

    /// Returns the calibration with its text loaded.
    pub fn calibration(&self, cancel: &AtomicBool) -> anyhow::Result<Option<Calibration>> {
        if let Some(path) = &self.calibration {
            return Ok(Some(Calibration::File(path.clone())));
        }
        let Some(path) = &self.calibrate else { return Ok(None) };
        let (text, name) = (read_text(path, cancel)?, path.display().to_string());
        let (tokens, context) = (self.calibration_tokens.unwrap_or(32768), self.calibration_context.unwrap_or(512));
        Ok(Some(Calibration::Text(Sample { text, name, tokens, context })))
    }
}
