//! The public API: open a model, hold a session, generate.

pub mod generate;
mod model;
mod perplexity;
mod session;

pub use crate::backend::timed::{Operation, Profile};
pub use model::Model;
pub use perplexity::{Perplexity, perplexity};
pub use session::{Limits, Machine, Observer, Session, SessionOptions, compute_meta_state, machines};
