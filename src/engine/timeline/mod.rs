//! A session that knows what it has read, and how: so it can go back, read something else, and be saved.

mod checkpoints;
mod disk;
mod history;
mod step;

pub use history::{Timeline, Watch};
pub use step::{Step, common_steps, decoded, passes, prefilled, saved_steps};
