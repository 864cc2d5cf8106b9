//! Search for a block's scale and minimum with the least error: for many candidates, the nearest levels are found, and
//! scale and minimum are refitted by weighted least squares and rounded to storable values.

use super::grid::Grid;
use crate::format::{
    DType,
    codec::{BLOCK, Block, Unfit, inverse, round_block},
};

/// Rounds rows of a quantized type, with the least-error scale for every block.
pub struct Searcher {
    dtype: DType,
    grid: Grid,
}

impl Searcher {
    /// Returns a searcher for rows of `dtype`, a quantized type.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, grid: Grid::new(dtype) }
    }

    /// Encodes a row like [`encode_row`](crate::format::codec::encode_row). The squared error in column i has the weight
    /// `importance[i]` ≥ 0; without importance, all weights are equal.
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
            search(&self.grid, x, &weights, &plain).block(&self.grid).store(self.dtype, bytes);
        }
        if fits { Ok(()) } else { Err(Unfit::Overflow) }
    }
}

/// A block of values as levels on a scale.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// The scale, as it is stored.
    pub d: f32,
    /// The minimum, as it is stored.
    pub m: f32,
    /// The levels.
    pub levels: [f32; BLOCK],
    /// Σ weight · (value − stored value)².
    pub error: f32,
}

impl Fit {
    fn of(grid: &Grid, d: f32, m: f32, x: &[f32; BLOCK], weights: &[f32; BLOCK]) -> Self {
        let (d, m) = (grid.scale(d), if grid.has_min { half::f16::from_f32(m).to_f32() } else { 0.0 });
        let inverse = inverse(d);
        let levels = grid.nearest(&x.map(|v| (v - m) * inverse));
        let mut error = 0.0;
        for i in 0..BLOCK {
            let off = x[i] - (levels[i] * d + m);
            error += weights[i] * off * off;
        }
        Self { d, m, levels, error }
    }

    /// Returns the block to store.
    pub fn block(&self, grid: &Grid) -> Block {
        grid.block(self.d, self.m, &self.levels)
    }
}

/// Finds a block for `x` with the least error, where the squared error of value i has the weight `weights[i]` ≥ 0. The
/// result is never worse than `plain`.
pub fn search(grid: &Grid, x: &[f32; BLOCK], weights: &[f32; BLOCK], plain: &Block) -> Fit {
    let mut best = Fit::of(grid, plain.d, plain.m, x, weights);
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let magnitude = max.max(-min);
    if magnitude == 0.0 || !best.error.is_finite() {
        return best;
    }
    if !grid.any_scale {
        let near = [0.5, 2.0].map(|factor| Fit::of(grid, plain.d * factor, 0.0, x, weights));
        return near.into_iter().fold(best, |best, fit| if fit.error < best.error { fit } else { best });
    }
    let mut best_line = (f32::INFINITY, 0.0, 0.0);
    let mut consider = |score: f32, d: f32, m: f32| {
        if score < best_line.0 {
            best_line = (score, d, m);
        }
    };
    if grid.has_min {
        let [low, top] = grid.reach;
        for i in 0..TRIALS {
            // Ranges from a clipped one to one slightly larger than the values'.
            let inverse = (low + top) * (0.8 + 0.4 * i as f32 / (TRIALS - 1) as f32) / (max - min);
            let center = (max + min) / 2.0;
            let levels = grid.nearest(&x.map(|v| (v - center) * inverse + (low + top) / 2.0));
            let (d, m) = fit_line(x, weights, &levels);
            consider(distance(x, weights, &levels, d, m), d, m);
        }
    } else {
        let sides: &[f32] = if grid.reach[0] == grid.reach[1] { &[1.0] } else { &[1.0, -1.0] };
        for &side in sides {
            // Maps the largest magnitude to the lowest level, or to the highest.
            let reach = if (max > -min) == (side > 0.0) { grid.reach[1] } else { grid.reach[0] };
            for i in 0..TRIALS {
                let inverse = side * reach * (0.78 + 0.44 * i as f32 / (TRIALS - 1) as f32) / magnitude;
                let levels = grid.nearest(&x.map(|v| v * inverse));
                let (up, down) = products(x, weights, &levels);
                if down > 0.0 {
                    consider(-up * up / down, up / down, 0.0);
                }
            }
        }
    }
    let (_, mut d, mut m) = best_line;
    // The fitted scale may have other nearest levels, for which another scale fits even better.
    for _ in 0..REFINEMENTS {
        let fit = Fit::of(grid, d, m, x, weights);
        if fit.error < best.error {
            best = fit;
        }
        if grid.has_min {
            (d, m) = fit_line(x, weights, &fit.levels);
        } else {
            let (up, down) = products(x, weights, &fit.levels);
            if down <= 0.0 {
                break;
            }
            (d, m) = (up / down, 0.0);
        }
    }
    best
}

/// Scales to try on each side.
const TRIALS: usize = 24;
const REFINEMENTS: usize = 3;

/// Σ w·x·l and Σ w·l·l.
#[inline]
fn products(x: &[f32; BLOCK], weights: &[f32; BLOCK], levels: &[f32; BLOCK]) -> (f32, f32) {
    let (mut up, mut down) = ([0f32; 4], [0f32; 4]);
    for i in 0..BLOCK {
        let weighted = weights[i] * levels[i];
        up[i % 4] += weighted * x[i];
        down[i % 4] += weighted * levels[i];
    }
    (up.iter().sum(), down.iter().sum())
}

/// Returns the line d·l + m that fits the values best.
#[inline]
fn fit_line(x: &[f32; BLOCK], weights: &[f32; BLOCK], levels: &[f32; BLOCK]) -> (f32, f32) {
    let (mut w, mut wl, mut wx) = ([0f32; 4], [0f32; 4], [0f32; 4]);
    for i in 0..BLOCK {
        w[i % 4] += weights[i];
        wl[i % 4] += weights[i] * levels[i];
        wx[i % 4] += weights[i] * x[i];
    }
    let [w, wl, wx] = [w, wl, wx].map(|v| v.iter().sum::<f32>());
    let (mean_level, mean) = (wl / w, wx / w);
    let (mut up, mut down) = ([0f32; 4], [0f32; 4]);
    for i in 0..BLOCK {
        let weighted = weights[i] * (levels[i] - mean_level);
        up[i % 4] += weighted * (x[i] - mean);
        down[i % 4] += weighted * (levels[i] - mean_level);
    }
    let (up, down) = (up.iter().sum::<f32>(), down.iter().sum::<f32>());
    let d = if down > 0.0 { up / down } else { 0.0 };
    (d, mean - d * mean_level)
}

#[inline]
fn distance(x: &[f32; BLOCK], weights: &[f32; BLOCK], levels: &[f32; BLOCK], d: f32, m: f32) -> f32 {
    let mut sum = [0f32; 4];
    for i in 0..BLOCK {
        let off = x[i] - (levels[i] * d + m);
        sum[i % 4] += weights[i] * off * off;
    }
    sum.iter().sum()
}
