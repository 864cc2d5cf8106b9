//! Evaluation: perplexity and divergence.

mod divergence;
mod perplexity;
mod softmax;

pub use divergence::{Divergence, diverge};
pub use perplexity::{Estimate, Perplexity, perplexity};
