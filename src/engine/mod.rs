//! The public API: open a model, hold a session, generate.

pub mod conversation;
pub mod generate;
mod model;
mod perplexity;
mod session;
pub mod timeline;

pub use crate::backend::timed::{Operation, Profile};
pub use conversation::Conversation;
pub use model::Model;
pub use perplexity::{Perplexity, perplexity};
pub use session::{Limits, Machine, Observer, Point, Session, SessionOptions, compute_meta_state, machines};
pub use timeline::Timeline;
