//! Hymba (arXiv 2411.13676) on the device in your hand.
//!
//! One way through: text → [`text`] → ids → [`engine`] → [`model`] (the forward pass, written once) → [`backend`]
//! → logits → [`sample`] → id → text. [`state`] keeps what the model remembers; [`format`] reads and writes files;
//! [`quant`] makes small checkpoints out of large ones.

pub mod backend;
pub mod engine;
mod error;
pub mod eval;
pub mod format;
pub mod forward;
pub mod import;
pub mod limits;
pub mod model;
pub mod quant;
pub mod sample;
pub mod state;
pub mod system;
pub mod text;

pub use error::{Error, Mismatch, Result};
