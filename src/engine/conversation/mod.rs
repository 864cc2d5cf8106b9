//! Conversations: turns between the user and the model on a timeline, with undo, regeneration, branches, a sliding
//! window and session files.

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
