//! Prefix states: what texts had read, for others that begin alike.

mod disk;
mod node;
mod saved;
mod tree;

pub use disk::Folder;
pub use node::{Step, decoded};
pub use tree::{Found, Prefixes};
