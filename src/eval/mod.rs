//! How well a model predicts a text, alone or beside another.

mod divergence;
mod perplexity;
mod softmax;

pub use divergence::{Divergence, diverge};
pub use perplexity::{Estimate, Perplexity, perplexity};
