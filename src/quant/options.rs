//! Conversion options.

use std::{num::NonZeroUsize, path::PathBuf};

use regex::Regex;

use super::{
    calibrate::Sample,
    recipe::Recipe,
    rounding::Gptq,
    tensor_type::{Choice, choose, overridden},
};
use crate::{
    format::{DType, gguf::Metadata},
    model::tensors::Spec,
};

/// Options of a conversion.
pub struct Options {
    /// The types of the matrices.
    pub types: TypePlan,
    /// Whether to interleave the rows of quantized matrices by eight, the fastest layout for the kernels.
    pub packed: bool,
    /// Types for tensors whose GGUF name matches; the last match wins.
    pub overrides: Vec<(Regex, DType)>,
    /// The rounding method.
    pub rounding: Rounding,
    /// Calibration data that weights quantization errors; a text for [`Rounding::Gptq`].
    pub calibration: Option<Calibration>,
    /// Where to save the importance matrix.
    pub save_moments: Option<PathBuf>,
    /// Overrides the checkpoint's model name.
    pub name: Option<String>,
    /// Metadata added to the checkpoint's, or overriding it.
    pub metadata: Metadata,
    /// Whether to replace an existing output.
    pub force: bool,
    /// Number of threads; `None`: one per core.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            types: TypePlan::Uniform(DType::Q4_0),
            packed: true,
            overrides: Vec::new(),
            rounding: Rounding::default(),
            calibration: None,
            save_moments: None,
            name: None,
            metadata: Metadata::default(),
            force: false,
            threads: None,
        }
    }
}

/// The types of the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypePlan {
    /// One type.
    Uniform(DType),
    /// A type per tensor, within the recipe's size; with `pure`, its main type for all matrices.
    #[allow(missing_docs, reason = "the variant's text names its fields")]
    Recipe { recipe: Recipe, pure: bool },
}

impl TypePlan {
    /// Returns the type or recipe of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let recipe = || Recipe::from_name(name).map(|recipe| Self::Recipe { recipe, pure: false });
        DType::from_name(name).map(Self::Uniform).or_else(recipe)
    }

    /// Returns the approximate bits per weight.
    pub fn bits(self) -> f64 {
        match self {
            Self::Uniform(dtype) => 8.0 * dtype.block_bytes() as f64 / dtype.block_len() as f64,
            Self::Recipe { recipe, .. } => recipe.bits(),
        }
    }

    /// Returns the type of most weights.
    pub(super) fn main(self) -> DType {
        match self {
            Self::Uniform(dtype) => dtype,
            Self::Recipe { recipe, .. } => recipe.main(),
        }
    }

    /// Chooses the type of each of `specs`, all tensors of a checkpoint.
    pub(super) fn choose(self, specs: &[Spec], overrides: &[(Regex, DType)]) -> Vec<Choice> {
        let mut exceptions: Vec<_> = specs.iter().map(|spec| overridden(spec, overrides)).collect();
        match self {
            Self::Uniform(_) => (),
            Self::Recipe { recipe, pure: true } => recipe.pure(specs, &mut exceptions),
            Self::Recipe { recipe, pure: false } => recipe.mix(specs, &mut exceptions),
        }
        specs.iter().zip(exceptions).map(|(spec, exception)| choose(spec, self.main(), exception)).collect()
    }
}

/// The rounding method.
#[derive(Clone, Copy, Debug, Default)]
pub enum Rounding {
    /// Round to nearest, with the same bytes as ggml's reference code.
    Nearest,
    /// Search for the scale with the least error.
    #[default]
    Search,
    /// Error compensation (GPTQ); needs a calibration text.
    Gptq(Gptq),
}

/// Calibration data that weights quantization errors.
#[derive(Clone, Debug)]
pub enum Calibration {
    /// Computed from a text.
    Text(Sample),
    /// A saved importance matrix.
    File(PathBuf),
}
