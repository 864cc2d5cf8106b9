//! The flags that say how values are rounded, and on what text that is decided.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use hymba::quant::{Calibration, Gptq, Order, Rounding, Sample};

use crate::cli::{options::count, prompt::read_whole, usage::Usage};

/// How values become blocks.
#[derive(clap::Args)]
#[command(next_help_heading = "Rounding")]
pub struct RoundingArgs {
    /// How values become blocks of the type
    #[arg(long, value_enum, default_value = "search")]
    rounding: Kind,
    /// Let the model read this text (UTF-8), and keep what it is sensitive to: unlike the texts to judge it by
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Use what --save-calibration kept, rather than read the text again
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    calibration: Option<PathBuf>,
    /// Keep what was measured on the text (second moments by column, a GGUF file as llama.cpp's imatrix)
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub save_calibration: Option<PathBuf>,
    /// Tokens of the text that are read at most, in pieces from all over it
    #[arg(long, value_name = "N", default_value = "32768", value_parser = count().range(2..=1 << 30))]
    calibration_tokens: usize,
    /// Tokens of a piece, which the model reads as a text of its own
    #[arg(long, value_name = "N", default_value = "512", value_parser = count().range(2..=1 << 16))]
    calibration_context: usize,
    /// With gptq: keeps few inputs from being trusted too far, as a share of their mean square
    #[arg(long, value_name = "X", default_value_t = Gptq::default().damping, value_parser = damping)]
    damping: f32,
    /// With gptq: the order in which columns are rounded
    #[arg(long, value_enum, default_value = "largest")]
    column_order: ColumnOrder,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Kind {
    /// Each for itself on the plainest scale: the bytes of ggml's reference code
    Nearest,
    /// On the scale that loses least, by what --calibrate measured if it is given
    Search,
    /// Later columns make up for the errors of earlier ones (needs --calibrate); takes minutes to hours
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
        _ => Err("a number from 0 to 10 is needed".into()),
    }
}

impl RoundingArgs {
    /// What the flags ask for.
    pub fn rounding(&self) -> anyhow::Result<Rounding> {
        let has_text = self.calibrate.is_some();
        let wrong = |what: &str| Err(Usage(what.into()).into());
        match self.rounding {
            Kind::Nearest if has_text || self.calibration.is_some() => {
                wrong("--rounding nearest takes no calibration; leave it out, or take search or gptq")
            }
            Kind::Gptq if !has_text => {
                wrong("--rounding gptq needs a text to calibrate on; name one with --calibrate FILE")
            }
            Kind::Gptq if self.save_calibration.is_some() => {
                wrong("--rounding gptq measures more than --save-calibration can keep; save it with --rounding search")
            }
            Kind::Nearest => Ok(Rounding::Nearest),
            Kind::Search => Ok(Rounding::Search),
            Kind::Gptq => {
                let order = match self.column_order {
                    ColumnOrder::Largest => Order::Largest,
                    ColumnOrder::Stored => Order::Stored,
                };
                Ok(Rounding::Gptq(Gptq { damping: self.damping, order }))
            }
        }
    }

    /// The calibration, its text read.
    pub fn calibration(&self, cancel: &AtomicBool) -> anyhow::Result<Option<Calibration>> {
        if let Some(path) = &self.calibration {
            return Ok(Some(Calibration::File(path.clone())));
        }
        let Some(path) = &self.calibrate else { return Ok(None) };
        let (text, name) = (read_whole(path, cancel)?, path.display().to_string());
        let (tokens, context) = (self.calibration_tokens, self.calibration_context);
        Ok(Some(Calibration::Text(Sample { text, name, tokens, context })))
    }
}
