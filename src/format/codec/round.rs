//! Round-to-nearest quantization, as in ggml's reference code.

use super::{BLOCK, Block, levels};
use crate::format::DType;

/// Rounds 32 finite values to a block of `dtype`, a quantized type.
pub fn block(dtype: DType, x: &[f32; BLOCK]) -> Block {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("{dtype} has no blocks"),
        DType::Q8_0 => {
            let d = magnitude(x) / 127.0;
            let inverse = inverse(d);
            Block { d, m: 0.0, q: x.map(|v| (round(v * inverse) + 128) as u8) }
        }
        DType::Q4_0 => around_zero(x, 8),
        DType::Q5_0 => around_zero(x, 16),
        DType::Q4_1 => from_minimum(x, 15),
        DType::Q5_1 => from_minimum(x, 31),
        DType::Iq4Nl => on_table(x, levels(dtype)),
        DType::Mxfp4 => {
            let magnitude = magnitude(x);
            // The largest of the 4-bit floats is below 8 = 2³, so that the largest value reaches 4 at least.
            let exponent = if magnitude > 0.0 { (magnitude.log2().floor() as i32 - 2).max(-127) } else { -127 };
            let d = 2f64.powi(exponent - 1) as f32;
            Block { d, m: 0.0, q: x.map(|v| nearest(levels(dtype), d, v)) }
        }
    }
}

/// Maps the first value of the largest magnitude to −`half`, so that its sign gets the longer side.
fn around_zero(x: &[f32; BLOCK], half: u8) -> Block {
    let d = largest(x) / -f32::from(half);
    let (inverse, middle) = (inverse(d), f32::from(half) + 0.5);
    Block { d, m: 0.0, q: x.map(|v| ((v * inverse + middle) as i32).min(i32::from(2 * half - 1)) as u8) }
}

/// Uses equal steps from the smallest value, code 0, to the largest, code `top`.
fn from_minimum(x: &[f32; BLOCK], top: u8) -> Block {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let m = x.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - m) / f32::from(top);
    let inverse = inverse(d);
    Block { d, m, q: x.map(|v| (((v - m) * inverse + 0.5) as i32).min(i32::from(top)) as u8) }
}

/// Maps the value of the largest magnitude to the first of the ascending `levels`, then refits the scale by least
/// squares, weighted by the squares of the values.
fn on_table(x: &[f32; BLOCK], levels: &[i8]) -> Block {
    let largest = largest(x);
    if largest.abs() < 1e-15 {
        return Block { d: 0.0, m: 0.0, q: [0; BLOCK] };
    }
    let inverse = 1.0 / (largest / f32::from(levels[0]));
    let code = |v: f32| {
        let midpoints = levels.windows(2).map(|pair| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0);
        midpoints.map(|h| u8::from(v * inverse >= h)).sum()
    };
    let q = x.map(code);
    let (mut up, mut down) = (0.0, 0.0);
    for (&v, &q) in x.iter().zip(&q) {
        let (level, weight) = (f32::from(levels[usize::from(q)]), v * v);
        up += weight * level * v;
        down += weight * level * level;
    }
    // Fourth powers of small values may underflow F32.
    Block { d: if down > 0.0 { up / down } else { 1.0 / inverse }, m: 0.0, q }
}

/// Returns the code of the level nearest to `v`; the first in a tie.
fn nearest(levels: &[i8], d: f32, v: f32) -> u8 {
    let mut best = (0, f32::INFINITY);
    for (q, &level) in levels.iter().enumerate() {
        let error = (d * f32::from(level) - v).abs();
        if error < best.1 {
            best = (q as u8, error);
        }
    }
    best.0
}

/// Returns the largest magnitude of finite values. Without the sign, their bits order like integers, which vectorizes.
fn magnitude(x: &[f32; BLOCK]) -> f32 {
    f32::from_bits(x.iter().fold(0, |m, v| m.max(v.to_bits() as i32 & i32::MAX)) as u32)
}

/// The first value of the largest magnitude.
fn largest(x: &[f32; BLOCK]) -> f32 {
    let magnitude = magnitude(x);
    x.iter().copied().find(|&v| v != 0.0 && v.abs() == magnitude).unwrap_or(0.0)
}

/// Returns the nearest integer, halves away from zero. Adds the largest number below ½, so that it does not round up to
/// 1 itself.
fn round(v: f32) -> i32 {
    (v + 0.5f32.next_down().copysign(v)) as i32
}

/// Returns 1/d, or 0 if that is infinite; the stored scale is 0 then.
#[inline]
pub fn inverse(d: f32) -> f32 {
    Some(1.0 / d).filter(|i| i.is_finite()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_halves_away_from_zero() {
        for eighth in -127 * 8..=127 * 8 {
            for v in [eighth as f32 / 8.0, (eighth as f32 / 8.0).next_down(), (eighth as f32 / 8.0).next_up()] {
                assert_eq!(round(v), v.round() as i32, "{v}");
            }
        }
    }
}
