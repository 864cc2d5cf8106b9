//! A conversation: turns of a person and the model on a timeline, with a past that can be taken back, tried again, branched,
//! shortened and saved.

mod branch;
mod calls;
mod format;
mod kind;
mod past;
mod prompt;
mod reply;
mod saved;
mod state;

use branch::Branch;
pub use branch::Turn;
pub use kind::{Kind, check_replaceable};
pub use reply::{Reply, ReplySink};
pub use saved::Saved;
pub use state::{Conversation, FIRST_BRANCH, Options, Overflow};
