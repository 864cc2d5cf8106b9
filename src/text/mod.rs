//! Text to token ids and back, a piece at a time, and where to stop.

mod stop;
mod stream;
mod tokenizer;

pub use stop::StopMatcher;
pub use stream::Stream;
pub use tokenizer::Tokenizer;
