//! Sessions with a token history, which can rewind, branch and be saved.

mod checkpoints;
mod disk;
mod history;
mod step;

pub use history::{Timeline, Watch};
pub use step::{Step, common_steps, decoded, passes, prefilled, saved_steps};
