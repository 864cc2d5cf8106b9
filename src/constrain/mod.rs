//! Constrained generation: computes the allowed next tokens for a JSON schema, a regular expression or a grammar.
//! llguidance does the matching; this module adds the tokenizer's vocabulary, limits, and error messages with
//! locations.

mod calls;
mod compile;
mod constraint;
mod cost;
mod gbnf;
mod locate;
mod matching;
mod schema;
mod vocabulary;

pub use constraint::{Constraint, Shape};
pub use matching::{Matching, Next};
pub use vocabulary::Vocabulary;
