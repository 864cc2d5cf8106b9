//! How long a conversion takes, so that hours do not come as a surprise.

use std::{num::NonZeroUsize, thread, time::Duration};

use hymba::quant::{Calibration, Options, Rounding};

/// Estimates the duration of a conversion with `options` of a model with so many weights.
pub fn estimate(options: &Options, parameters: u64) -> Duration {
    let threads = options.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    Duration::from_secs_f64(nanoseconds(options) / threads as f64 * parameters as f64 / 1e9)
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
