//! Encoding and decoding of rows, byte for byte as in ggml's reference code. This is the scalar reference for the
//! kernels, and decodes embedding rows.

use half::{bf16, f16};

use super::DType;

mod block;
mod round;

pub use block::{BLOCK, Block, levels};
pub use round::{block as round_block, inverse};

/// Why a value cannot be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The value is NaN or infinite.
    #[error("contains NaN or infinity")]
    NotFinite,
    /// A value, or the scale of a block, is too large for the type.
    #[error("contains values too large for the type")]
    Overflow,
}

/// Decodes a row: `bytes` holds exactly `out.len()` values of type `dtype`.
pub fn decode_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()));
    match dtype {
        DType::F32 => {
            let (values, _) = bytes.as_chunks();
            out.iter_mut().zip(values).for_each(|(o, &v)| *o = f32::from_le_bytes(v));
        }
        DType::F16 => {
            let (values, _) = bytes.as_chunks();
            out.iter_mut().zip(values).for_each(|(o, &v)| *o = f16::from_le_bytes(v).to_f32());
        }
        DType::BF16 => {
            let (values, _) = bytes.as_chunks();
            out.iter_mut().zip(values).for_each(|(o, &v)| *o = bf16::from_le_bytes(v).to_f32());
        }
        _ => {
            let blocks = bytes.chunks_exact(dtype.block_bytes());
            for (out, bytes) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks) {
                Block::load(dtype, bytes).values(dtype, out);
            }
        }
    }
}

/// Encodes a row with round-to-nearest: `out` holds exactly `values.len()` values of type `dtype`, in whole blocks.
pub fn encode_row(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), Unfit> {
    debug_assert_eq!(dtype.row_bytes(values.len()), Some(out.len()));
    if !values.iter().all(|v| v.is_finite()) {
        return Err(Unfit::NotFinite);
    }
    let mut fits = true;
    match dtype {
        DType::F32 => {
            let (out, _) = out.as_chunks_mut();
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes());
        }
        DType::F16 => {
            let (out, _) = out.as_chunks_mut();
            for (out, &v) in out.iter_mut().zip(values) {
                let v = f16::from_f32(v);
                fits &= v.is_finite();
                *out = v.to_le_bytes();
            }
        }
        DType::BF16 => {
            let (out, _) = out.as_chunks_mut();
            for (out, &v) in out.iter_mut().zip(values) {
                let v = bf16::from_f32(v);
                fits &= v.is_finite();
                *out = v.to_le_bytes();
            }
        }
        _ => {
            let blocks = out.chunks_exact_mut(dtype.block_bytes());
            for (bytes, x) in blocks.zip(values.as_chunks::<BLOCK>().0) {
                let block = round::block(dtype, x);
                fits &= block.fits(dtype);
                block.store(dtype, bytes);
            }
        }
    }
    if fits { Ok(()) } else { Err(Unfit::Overflow) }
}

#[cfg(test)]
mod tests;
