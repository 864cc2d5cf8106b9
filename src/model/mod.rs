//! The model: its sizes, the plan of its layers, its tensors.

pub mod config;
pub mod plan;
pub mod tensors;
pub mod weights;

pub use config::{Activation, Config};
pub use plan::Plan;
pub use weights::Weights;
