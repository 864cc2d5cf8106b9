//! The public API: open a model, hold a session, generate.

mod model;
mod session;

pub use model::Model;
pub use session::{Observer, Session, SessionOptions, compute_meta_state};
