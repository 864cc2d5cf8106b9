//! The grid of a quantized type for searches: nearest levels and representable scales.

use half::f16;

use crate::format::{
    DType,
    codec::{BLOCK, Block, levels},
};

/// Table entries per unit of a scaled value.
const STEPS: f32 = 4.0;
/// Levels and scaled values are between −`REACH` and `REACH`.
const REACH: f32 = 128.0;
const TABLE_LEN: usize = 1024; // 2 · REACH · STEPS

/// The levels of a quantized type: the values of its codes before scaling.
pub struct Grid {
    dtype: DType,
    kind: Kind,
    /// Whether a block has a minimum besides its scale.
    pub has_min: bool,
    /// Whether scales can have any value, rather than only powers of two.
    pub any_scale: bool,
    /// The largest magnitudes of levels on both sides of zero.
    pub reach: [f32; 2],
}

enum Kind {
    /// All integers from `low` to `high`.
    Even { low: f32, high: f32 },
    /// Other levels: the nearest level and its code for each table entry.
    Table { codes: Box<[u8; TABLE_LEN]>, levels: Box<[f32; TABLE_LEN]> },
}

impl Grid {
    /// Returns the grid of `dtype`, a quantized type.
    pub fn new(dtype: DType) -> Self {
        let levels: Vec<f32> = levels(dtype).iter().map(|&l| f32::from(l)).collect();
        // ggml never writes the lowest byte of Q8_0, and kernels may take its magnitude.
        let low = levels.iter().copied().fold(f32::INFINITY, f32::min).max(-127.0);
        let high = levels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let even = levels.windows(2).all(|pair| pair[1] == pair[0] + 1.0);
        let kind = if even {
            Kind::Even { low, high }
        } else {
            let codes: [u8; TABLE_LEN] = std::array::from_fn(|i| {
                let v = (i as f32 + 0.5) / STEPS - REACH;
                let distance = |&code: &usize| (levels[code] - v).abs();
                (0..levels.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0) as u8
            });
            Kind::Table { levels: Box::new(codes.map(|code| levels[usize::from(code)])), codes: Box::new(codes) }
        };
        Self { dtype, kind, has_min: dtype.has_min(), any_scale: dtype != DType::Mxfp4, reach: [-low, high] }
    }

    /// Returns the levels nearest to the scaled values `v`.
    #[inline]
    pub fn nearest(&self, v: &[f32; BLOCK]) -> [f32; BLOCK] {
        match &self.kind {
            Kind::Even { low, high } => v.map(|v| round_to_integer(v.clamp(*low, *high))),
            Kind::Table { levels, .. } => v.map(|v| levels[table_index(v)]),
        }
    }

    /// Returns the level nearest to `v`.
    #[inline]
    pub fn nearest_one(&self, v: f32) -> f32 {
        match &self.kind {
            Kind::Even { low, high } => round_to_integer(v.clamp(*low, *high)),
            Kind::Table { levels, .. } => levels[table_index(v)],
        }
    }

    /// Returns the nearest scale to `d` that can be stored.
    #[inline]
    pub fn scale(&self, d: f32) -> f32 {
        if self.any_scale {
            return f16::from_f32(d).to_f32();
        }
        // The nearest by ratio.
        f32::exp2(d.abs().log2().round().clamp(-128.0, 126.0))
    }

    /// Returns the block with these levels.
    pub fn block(&self, d: f32, m: f32, chosen: &[f32; BLOCK]) -> Block {
        let q = chosen.map(|level| match &self.kind {
            Kind::Even { .. } => (level - f32::from(levels(self.dtype)[0])) as u8,
            Kind::Table { codes, .. } => codes[table_index(level)],
        });
        Block { d, m, q }
    }
}

/// Returns the nearest integer of a small number: adding the constant leaves no bits for a fraction.
#[inline]
fn round_to_integer(v: f32) -> f32 {
    const ROUND_MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³
    (v + ROUND_MAGIC) - ROUND_MAGIC
}

/// Returns the table index of a scaled value, clamped to the table.
#[inline]
fn table_index(v: f32) -> usize {
    // Half a step less, since the conversion rounds to nearest; adding 2²³ moves the integer to the lowest bits.
    let at = ((v + REACH) * STEPS - 0.5).clamp(0.0, (TABLE_LEN - 1) as f32);
    (at + 8_388_608.0).to_bits() as usize % TABLE_LEN
}
