//! From logits to a token.

mod params;
mod sampler;

pub use params::{Params, Setting};
pub use sampler::{Sampler, SavedSampler};
