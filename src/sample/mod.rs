//! From logits to a token.

mod params;
mod sampler;

pub use params::{SamplingParams, Setting};
pub use sampler::{Sampler, SavedSampler};
