//! Conversion events and summary.

use std::fmt;

use crate::format::{DType, gguf::Layout};

/// A step of a conversion.
#[allow(missing_docs, reason = "a variant's text names its fields")]
pub enum Event<'a> {
    /// The checkpoint was read, except for its weights; their number.
    Opened { parameters: u64 },
    /// A calibration starts; its number of steps, of similar duration.
    Calibrate { steps: u64 },
    /// `steps` further steps of the calibration, on `label`, are done.
    Calibrated { label: &'a str, steps: u64 },
    /// The conversion starts; its input in bytes.
    Begin { bytes: u64 },
    /// A piece of a tensor was written; its input in bytes.
    Converted { tensor: &'a str, bytes: u64 },
    /// The weights are written; the state after the meta tokens is computed next.
    MetaState,
}

/// The result of a conversion.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The types of the weights, each with the number of tensors and their bytes.
    pub types: Vec<(DType, usize, u64)>,
    /// Tensors whose row length is not a multiple of the requested type's block: name, requested type, actual type.
    pub fallbacks: Vec<(String, DType, DType)>,
    /// Notes for the user, a sentence each.
    pub notes: Vec<String>,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the output file.
    pub bytes: u64,
    /// Bits per weight, without the state after the meta tokens.
    pub bits_per_weight: f64,
    /// The elapsed time.
    pub seconds: f64,
    /// Whether the model has a chat template.
    pub chats: bool,
}

impl Summary {
    /// Counts the first `weights` tensors of `layout`; the others hold state.
    pub(super) fn count(&mut self, layout: &Layout, weights: usize) {
        let slots = layout.slots.iter().take(weights);
        self.parameters = slots.clone().map(|slot| slot.dims.iter().product::<usize>() as u64).sum();
        for dtype in DType::ALL {
            let slots = slots.clone().filter(|s| s.dtype == dtype);
            let (count, bytes) = slots.fold((0, 0), |(n, sum), s| (n + 1, sum + s.bytes));
            if count > 0 {
                self.types.push((dtype, count, bytes));
            }
        }
        let bytes: u64 = self.types.iter().map(|&(_, _, bytes)| bytes).sum();
        self.bits_per_weight = bytes as f64 * 8.0 / self.parameters as f64;
        self.bytes = layout.size;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &(dtype, count, bytes) in &self.types {
            writeln!(f, "{:<6} {count:>4} tensors {:>9.1} MB", dtype.name(), bytes as f64 / 1e6)?;
        }
        for (name, requested, actual) in &self.fallbacks {
            writeln!(f, "{name} is stored as {actual}: its rows are not a multiple of {requested}'s block size")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let Self { parameters, bytes, bits_per_weight, seconds, .. } = self;
        let (parameters, megabytes) = (size_label(*parameters), *bytes as f64 / 1e6);
        write!(f, "{megabytes:.1} MB, {parameters} weights at {bits_per_weight:.2} bits each, in {seconds:.1} s")
    }
}

/// Returns a number of weights with at least two digits, as in model names: 27M, 1.5B.
pub(super) fn size_label(parameters: u64) -> String {
    let (unit, letter) = match parameters {
        0..1_000_000 => (1e3, 'K'),
        1_000_000..1_000_000_000 => (1e6, 'M'),
        1_000_000_000.. => (1e9, 'B'),
    };
    let scaled = parameters as f64 / unit;
    let digits = usize::from(scaled.round() < 10.0);
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_two_digits() {
        let labels =
            [(1_522_797_824, "1.5B"), (27_111_424, "27M"), (125_400, "125K"), (9_960_000, "10M"), (5_000_000, "5.0M")];
        for (parameters, label) in labels {
            assert_eq!(size_label(parameters), label);
        }
    }
}
