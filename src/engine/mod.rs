//! Sessions and what they are for: open a model, generate, talk, go back, save.

pub mod conversation;
pub mod generate;
mod instrument;
mod model;
mod session;
pub mod timeline;

pub use conversation::Conversation;
pub use instrument::Roofline;
pub use model::Model;
pub use session::{Session, SessionOptions};
pub use timeline::Timeline;
