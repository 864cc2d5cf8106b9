//! The model: its sizes, its tensors, and one forward pass for every backend.

pub mod config;
pub mod plan;
pub mod tensors;

pub use config::{Activation, Config};
