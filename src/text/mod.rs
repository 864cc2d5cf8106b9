//! Text to token ids and back, a piece at a time, and where to stop.

mod stop;
mod stream;
mod tokenizer;

pub use stop::StopMatcher;
pub use stream::Stream;
pub use tokenizer::Tokenizer;

#[cfg(test)]
pub(crate) use tokenizer::tests::small as small_tokenizer;
