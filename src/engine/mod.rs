//! Models, sessions, generation, conversations, checkpoints and session files.

pub mod batch;
pub mod conversation;
pub mod generate;
mod generation;
pub mod generator;
mod instrument;
mod model;
pub mod prefix;
pub mod scheduler;
mod session;
pub mod speculate;
mod text;
pub mod timeline;
mod token_model;

pub use batch::Batch;
pub use conversation::Conversation;
pub use instrument::Roofline;
pub use model::Model;
pub use session::{Session, SessionOptions};
pub use text::Text;
pub use timeline::Timeline;
pub use token_model::TokenModel;
