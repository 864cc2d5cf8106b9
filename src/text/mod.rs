//! Tokenization, streaming decoding, chat templates, stop strings and tool calls.

pub mod calls;
mod divide;
mod ends;
mod jinja;
mod literal;
mod markers;
mod parts;
mod rendered;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod tools;

pub use calls::{Call, ParsedReply, ReplyParser, ReplyPart, parse_reply};
pub use ends::end_tokens;
pub use markers::Markers;
pub use rendered::Rendered;
pub use stop::StopMatcher;
pub use stream::Stream;
pub use template::{Inputs, Message, Role, Template};
pub use tokenizer::{Entry, Tokenizer};
pub use tools::{Tool, ToolChoice, Tools, kind};

#[cfg(test)]
pub(crate) use tokenizer::tests::{small as small_tokenizer, small_with_ends};
