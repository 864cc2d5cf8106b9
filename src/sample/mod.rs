//! Sampling: from logits to a token.

mod params;
mod sampler;
mod token_set;

pub use params::{SamplingParams, Setting};
pub use sampler::{Sampler, SavedSampler};
pub use token_set::TokenSet;
