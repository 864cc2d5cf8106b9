//! Which tokens may come next, so that a text matches a JSON schema, a regular expression or a grammar: the engine is
//! llguidance, here it is given this tokenizer's vocabulary, limits, and errors that name the place.

mod calls;
mod compile;
mod constraint;
mod gbnf;
mod matching;
mod place;
mod schema;
mod vocabulary;

pub use constraint::{Constraint, Shape};
pub use matching::{Matching, Next};
pub use vocabulary::Vocabulary;
