//! What a conversion is asked for.

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

/// How to convert.
pub struct Options {
    /// The types of the matrices.
    pub types: TypePlan,
    /// Interleave the rows of quantized matrices by eight, as the kernels read them fastest?
    pub packed: bool,
    /// Other types for tensors whose name (in GGUF) matches; the last match wins.
    pub overrides: Vec<(Regex, DType)>,
    /// How values become blocks.
    pub rounding: Rounding,
    /// How it is known which errors are felt; with [`Rounding::Gptq`] a text.
    pub calibration: Option<Calibration>,
    /// Where to save what was measured on the text.
    pub save_moments: Option<PathBuf>,
    /// What the model is called, in place of what the checkpoint says.
    pub name: Option<String>,
    /// Keys that the file gets beside those of the checkpoint, or in their place.
    pub metadata: Metadata,
    /// Replace an existing output?
    pub force: bool,
    /// Threads that convert; `None`: one a core.
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

/// Which types the matrices take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypePlan {
    /// All the same.
    Uniform(DType),
    /// Each what it needs, so that the file keeps to the recipe's size; if `pure`, all in its main type after all.
    #[allow(missing_docs, reason = "the variant's text names its fields")]
    Recipe { recipe: Recipe, pure: bool },
}

impl TypePlan {
    /// The type or recipe of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let recipe = || Recipe::from_name(name).map(|recipe| Self::Recipe { recipe, pure: false });
        DType::from_name(name).map(Self::Uniform).or_else(recipe)
    }

    /// Bits that a weight takes, about.
    pub fn bits(self) -> f64 {
        match self {
            Self::Uniform(dtype) => 8.0 * dtype.block_bytes() as f64 / dtype.block_len() as f64,
            Self::Recipe { recipe, .. } => recipe.bits(),
        }
    }

    /// The type that most weights take.
    pub(super) fn main(self) -> DType {
        match self {
            Self::Uniform(dtype) => dtype,
            Self::Recipe { recipe, .. } => recipe.main(),
        }
    }

    /// Chooses for each of `specs`, all tensors of a checkpoint.
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

/// How values become blocks.
#[derive(Clone, Copy, Debug, Default)]
pub enum Rounding {
    /// Each value for itself, on the plainest scale: the bytes that ggml's reference code makes.
    Nearest,
    /// On the scale that loses least.
    #[default]
    Search,
    /// So that later columns make up for the errors of earlier ones; needs a text to calibrate on.
    Gptq(Gptq),
}

/// How it is known which errors of a matrix are felt.
#[derive(Clone, Debug)]
pub enum Calibration {
    /// The model reads a text.
    Text(Sample),
    /// What was measured before, and saved.
    File(PathBuf),
}
