//! How values become blocks: each for itself on the plainest scale, as ggml's reference code does it
//! ([`encode_row`](crate::format::codec::encode_row)); on the scale that loses least ([`Searcher`]); or
//! so that later columns make up for the errors of earlier ones ([`compensate`]).

mod cholesky;
mod gptq;
mod grid;
mod search;

use crate::format::{
    DType,
    codec::{BLOCK, Unfit, round_block},
};
pub use gptq::{Factor, Gptq, Hessian, Order, compensate};
use grid::Grid;

/// How values become blocks.
#[derive(Clone, Copy, Debug, Default)]
pub enum Rounding {
    /// Each value for itself, on the plainest scale: the bytes that ggml's reference code makes.
    Nearest,
    /// On the scale that loses least.
    #[default]
    Search,
    /// So that later columns make up for the errors of earlier ones; needs a text to calibrate on.
    Gptq(Gptq),
}

/// Rounds rows of a quantized type, every block on the scale that loses least.
pub struct Searcher {
    dtype: DType,
    grid: Grid,
}

impl Searcher {
    /// For rows of `dtype`, a quantized type.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, grid: Grid::new(dtype) }
    }

    /// Writes a row as [`encode_row`](crate::format::codec::encode_row) does. An error in column i counts `importance[i]`, not below 0;
    /// all count the same if there is none.
    pub fn encode_row(&self, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), Unfit> {
        if !values.iter().all(|v| v.is_finite()) {
            return Err(Unfit::NotFinite);
        }
        let blocks = out.chunks_exact_mut(self.dtype.block_bytes());
        let mut fits = true;
        for (i, (bytes, x)) in blocks.zip(values.as_chunks::<BLOCK>().0).enumerate() {
            let plain = round_block(self.dtype, x);
            fits &= plain.fits(self.dtype);
            let mut weights = [1.0; BLOCK];
            if let Some(importance) = importance {
                weights.copy_from_slice(&importance[i * BLOCK..][..BLOCK]);
            }
            search::search(&self.grid, x, &weights, &plain).block(&self.grid).store(self.dtype, bytes);
        }
        if fits { Ok(()) } else { Err(Unfit::Overflow) }
    }
}

#[cfg(test)]
mod tests;
