//! Rounding to blocks: to nearest, as in ggml's reference code ([`encode_row`](crate::format::codec::encode_row)); with
//! the least-error scale ([`Searcher`]); or with error compensation ([`compensate`]).

mod cholesky;
mod gptq;
mod grid;
mod search;

pub use gptq::{Factor, Gptq, Hessian, Order, compensate};
pub use search::Searcher;

#[cfg(test)]
mod tests;
