//! Speculative decoding: drafts are verified several tokens per pass, and the generated text is the same as without
//! them.

mod acceptance;
mod costs;
mod index;
mod source;
mod speculator;

pub use acceptance::Acceptance;
pub use costs::Costs;
pub use index::Index;
pub use source::{Class, DraftSource, Forced, Guess};
pub use speculator::{Counts, Speculate, Speculator};
