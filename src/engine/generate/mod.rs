//! From a prompt to a text.

mod decode_loop;
mod outcome;
mod text_sink;
mod token_model;

pub use decode_loop::{Request, generate};
pub use outcome::{Generation, StopReason, Timings};
pub use token_model::TokenModel;
