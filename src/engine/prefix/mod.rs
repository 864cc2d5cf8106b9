//! Prefix caching: states after prompts, shared by sequences with the same prefix.

mod disk;
mod node;
mod saved;
mod tree;

pub use disk::Folder;
pub use node::{Step, decoded};
pub use tree::{Found, Prefixes};
