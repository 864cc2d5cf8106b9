//! Speculative decoding: drafts are verified several tokens per pass, and the generated text is the same as without
//! them.

mod acceptance;
mod costs;
mod drafter;
mod index;
mod policy;
mod source;
mod speculator;

pub use acceptance::Acceptance;
pub use costs::{Costs, ROWS};
pub use drafter::Drafter;
pub use index::Index;
pub use policy::{Policy, Speculate};
pub use source::{Class, DraftSource, Forced, Guess};
pub use speculator::{Counts, Speculator};
