//! Rows of values to stored bytes and back, byte for byte as ggml's reference code does it. This is the scalar
//! reference for the kernels, and what the embedding lookup reads with.

use half::{bf16, f16};

use crate::format::DType;

/// Why a value can't be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The input is not a number, or infinite.
    #[error("holds NaN or infinity")]
    NotFinite,
    /// A value, or the scale of a block, is too large for the type.
    #[error("holds values too large for the type")]
    Overflow,
}

const BLOCK: usize = 32;

/// Reads a row: `bytes` holds exactly `out.len()` values of type `dtype`.
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
        DType::Q8_0 => {
            let (blocks, _) = bytes.as_chunks::<34>();
            for (out, [d0, d1, qs @ ..]) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks) {
                let d = f16::from_le_bytes([*d0, *d1]).to_f32();
                out.iter_mut().zip(qs).for_each(|(o, &q)| *o = q as i8 as f32 * d);
            }
        }
        DType::Q4_0 => {
            let (blocks, _) = bytes.as_chunks::<18>();
            for (out, [d0, d1, qs @ ..]) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks) {
                let d = f16::from_le_bytes([*d0, *d1]).to_f32();
                let (low, high) = out.split_at_mut(BLOCK / 2);
                for ((low, high), &q) in low.iter_mut().zip(high).zip(qs) {
                    *low = ((q & 15) as f32 - 8.0) * d;
                    *high = ((q >> 4) as f32 - 8.0) * d;
                }
            }
        }
    }
}

/// Writes a row: `out` has room for exactly `values.len()` values of type `dtype`, a multiple of its block.
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
        DType::Q8_0 => {
            let (blocks, _) = out.as_chunks_mut::<34>();
            for ([d0, d1, qs @ ..], x) in blocks.iter_mut().zip(values.as_chunks::<BLOCK>().0) {
                let d = magnitude(x) / 127.0;
                [*d0, *d1] = scale(d, &mut fits);
                let inverse = inverse(d);
                qs.iter_mut().zip(x).for_each(|(q, &v)| *q = round(v * inverse) as u8);
            }
        }
        DType::Q4_0 => {
            let (blocks, _) = out.as_chunks_mut::<18>();
            for ([d0, d1, qs @ ..], x) in blocks.iter_mut().zip(values.as_chunks::<BLOCK>().0) {
                // The first value of the largest magnitude becomes −8, so that its sign gets the longer side.
                let magnitude = magnitude(x);
                let largest = x.iter().copied().find(|&v| v != 0.0 && v.abs() == magnitude).unwrap_or(0.0);
                let d = largest / -8.0;
                [*d0, *d1] = scale(d, &mut fits);
                let inverse = inverse(d);
                let nibble = |v: f32| ((v * inverse + 8.5) as i32).min(15) as u8;
                let (low, high) = x.split_at(BLOCK / 2);
                for ((q, &low), &high) in qs.iter_mut().zip(low).zip(high) {
                    *q = nibble(low) | nibble(high) << 4;
                }
            }
        }
    }
    if fits { Ok(()) } else { Err(Unfit::Overflow) }
}

fn scale(d: f32, fits: &mut bool) -> [u8; 2] {
    let d = f16::from_f32(d);
    *fits &= d.is_finite();
    d.to_le_bytes()
}

/// The largest magnitude of finite values: their bits, sign aside, order as integers do, which vectorizes.
fn magnitude(x: &[f32; BLOCK]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() as i32 & i32::MAX)) as u32)
}

/// The nearest integer, halves away from zero. The largest number below ½ is added, lest the one below it reach 1.
fn round(v: f32) -> i32 {
    (v + 0.5f32.next_down().copysign(v)) as i32
}

/// 1/d, or 0 for a scale so small that 1/d is infinite; the stored scale is 0 then.
fn inverse(d: f32) -> f32 {
    Some(1.0 / d).filter(|i| i.is_finite()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
