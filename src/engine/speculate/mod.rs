//! More than one token a pass: guesses of the next tokens, verified together, so that the text stays what single steps give.

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
