//! How values become blocks: each for itself on the plainest scale, as ggml's reference code does it
//! ([`encode_row`](crate::format::codec::encode_row)); on the scale that loses least ([`Searcher`]); or
//! so that later columns make up for the errors of earlier ones ([`compensate`]).

mod cholesky;
mod gptq;
mod grid;
mod search;

pub use gptq::{Factor, Gptq, Hessian, Order, compensate};
pub use search::Searcher;

#[cfg(test)]
mod tests;
