//! The model: its sizes, its tensors, and one forward pass for every backend.

pub mod config;
pub mod forward;
pub mod plan;
pub mod tensors;
pub mod weights;

pub use config::{Activation, Config};
pub use plan::Plan;
pub use weights::Weights;
