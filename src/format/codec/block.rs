//! A decoded block of 32 values: scale, minimum, and a code per value.

use half::f16;

use crate::format::DType;

/// Values in a block.
pub const BLOCK: usize = 32;

/// A quantized block of 32 values: value i is `d * levels(dtype)[q[i]] + m`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// The scale. Stored as F16, as a power of two in MXFP4.
    pub d: f32,
    /// The minimum, stored as F16; 0 in types without one.
    pub m: f32,
    /// The codes; those of Q8_0 are signed bytes offset by 128.
    pub q: [u8; BLOCK],
}

/// Returns the values of the codes, before scale and minimum.
pub fn levels(dtype: DType) -> &'static [i8] {
    const fn counted<const N: usize>(first: i8) -> [i8; N] {
        let mut levels = [first; N];
        let mut i = 1;
        while i < N {
            levels[i] = levels[i - 1] + 1;
            i += 1;
        }
        levels
    }
    static EIGHT_BITS: [i8; 256] = counted(-128);
    static FROM_0: [i8; 32] = counted(0);
    static FROM_8_BELOW: [i8; 16] = counted(-8);
    static FROM_16_BELOW: [i8; 32] = counted(-16);
    static IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    // Twice 0, ½, 1, 1½, 2, 3, 4, 6, and the same below zero.
    static E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q8_0 => &EIGHT_BITS,
        DType::Q5_1 => &FROM_0,
        DType::Q5_0 => &FROM_16_BELOW,
        DType::Q4_1 => &FROM_0[..16],
        DType::Q4_0 => &FROM_8_BELOW,
        DType::Iq4Nl => &IQ4_NL,
        DType::Mxfp4 => &E2M1,
    }
}

impl Block {
    /// Reads a block of `dtype`, a quantized type.
    #[inline]
    pub fn load(dtype: DType, bytes: &[u8]) -> Self {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let mut q = [0; BLOCK];
        match dtype {
            DType::Q8_0 => {
                q.iter_mut().zip(&bytes[2..]).for_each(|(q, &byte)| *q = byte ^ 0x80);
                Self { d: half(0), m: 0.0, q }
            }
            DType::Mxfp4 => {
                load_nibbles(&bytes[1..], &mut q);
                Self { d: e8m0(bytes[0]), m: 0.0, q }
            }
            _ => {
                let (has_min, has_fifth) = (dtype.has_min(), dtype.has_fifth_bits());
                let mut at = if has_min { 4 } else { 2 };
                let (d, m) = (half(0), if has_min { half(2) } else { 0.0 });
                let mut fifth = 0;
                if has_fifth {
                    fifth = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                    at += 4;
                }
                load_nibbles(&bytes[at..], &mut q);
                q.iter_mut().enumerate().for_each(|(i, q)| *q |= ((fifth >> i & 1) as u8) << 4);
                Self { d, m, q }
            }
        }
    }

    /// Encodes the block as `dtype`, the quantized type of its codes. `d` and `m` are rounded to the nearest F16.
    #[inline]
    pub fn store(&self, dtype: DType, bytes: &mut [u8]) {
        let half = |v: f32| f16::from_f32(v).to_le_bytes();
        match dtype {
            DType::Q8_0 => {
                bytes[..2].copy_from_slice(&half(self.d));
                bytes[2..].iter_mut().zip(self.q).for_each(|(byte, q)| *byte = q ^ 0x80);
            }
            DType::Mxfp4 => {
                bytes[0] = e8m0_code(self.d);
                store_nibbles(&self.q, &mut bytes[1..]);
            }
            _ => {
                let mut at = 2;
                bytes[..2].copy_from_slice(&half(self.d));
                if dtype.has_min() {
                    bytes[2..4].copy_from_slice(&half(self.m));
                    at = 4;
                }
                if dtype.has_fifth_bits() {
                    let fifth = self.q.iter().enumerate().fold(0, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
                    bytes[at..at + 4].copy_from_slice(&fifth.to_le_bytes());
                    at += 4;
                }
                store_nibbles(&self.q, &mut bytes[at..]);
            }
        }
    }

    /// Returns the values of a block of `dtype`.
    #[inline]
    pub fn values(&self, dtype: DType, out: &mut [f32; BLOCK]) {
        let levels = levels(dtype);
        let has_min = dtype.has_min();
        for (out, q) in out.iter_mut().zip(self.q) {
            let v = f32::from(levels[usize::from(q)]) * self.d;
            *out = if has_min { v + self.m } else { v };
        }
    }

    /// Whether `dtype` can represent the scale and the minimum.
    pub fn fits(&self, dtype: DType) -> bool {
        dtype == DType::Mxfp4 || [self.d, self.m].iter().all(|v| f16::from_f32(*v).is_finite())
    }
}

fn load_nibbles(bytes: &[u8], q: &mut [u8; BLOCK]) {
    let (low, high) = q.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

fn store_nibbles(q: &[u8; BLOCK], bytes: &mut [u8]) {
    let (low, high) = q.split_at(BLOCK / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}

/// Returns the scale of the MXFP4 exponent byte `e`: half of 2^(e − 127), since levels are doubled.
fn e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Returns the exponent byte of a power of two, the inverse of [`e8m0`].
fn e8m0_code(d: f32) -> u8 {
    if d < f32::MIN_POSITIVE { u8::from(d > e8m0(0)) } else { (d.to_bits() >> 23) as u8 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponent_bytes_round_trip() {
        for e in 0..=254 {
            assert_eq!(f64::from(e8m0(e)), 2f64.powi(i32::from(e) - 128), "{e}");
            assert_eq!(e8m0_code(e8m0(e)), e);
        }
    }

    #[test]
    fn any_bytes_decode_and_encode_to_themselves() {
        for dtype in DType::ALL.into_iter().filter(|d| d.is_quantized()) {
            for seed in 0..50u32 {
                let mut bytes: Vec<u8> = (0..dtype.block_bytes() as u32)
                    .map(|i| ((seed * 97 + i).wrapping_mul(2_654_435_761) >> 23) as u8)
                    .collect();
                // Only finite scales.
                bytes[1] &= 0x3f;
                if dtype.has_min() {
                    bytes[3] &= 0x3f;
                }
                let mut back = vec![0; bytes.len()];
                Block::load(dtype, &bytes).store(dtype, &mut back);
                assert_eq!(back, bytes, "{dtype}");
            }
        }
    }
}
