//! The public API: open a model, hold a session, generate.

pub mod conversation;
mod divergence;
pub mod generate;
mod model;
mod perplexity;
mod session;
mod softmax;
pub mod timeline;

pub use crate::backend::timed::{Operation, Profile};
pub use conversation::Conversation;
pub use divergence::{Divergence, diverge};
pub use model::Model;
pub use perplexity::{Estimate, Perplexity, perplexity};
pub use session::{Limits, Machine, Observer, Point, Session, SessionOptions, compute_meta_state, machines};
pub use timeline::Timeline;
