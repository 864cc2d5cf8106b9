//! Error-compensating rounding (GPTQ, arXiv 2210.17323): the columns of a matrix are rounded one after the other, and
//! the remaining ones compensate each error according to the inputs' second moments.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{linalg::general_mat_mul, s};
use rayon::prelude::*;

use super::{
    cholesky::{cholesky, invert, strided, strided_mut},
    grid::Grid,
    search::search,
};
use crate::format::{
    DType,
    codec::{BLOCK, Unfit, inverse, round_block},
};

/// Column order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The stored order.
    Stored,
    /// Blocks with the largest inputs first, and within a block the columns with the largest: early errors can be
    /// compensated by more columns.
    #[default]
    Largest,
}

/// Options of GPTQ.
#[derive(Clone, Copy, Debug)]
pub struct Gptq {
    /// Damping: fraction of the mean Hessian diagonal added to the diagonal.
    pub damping: f32,
    /// The order of the columns.
    pub order: Order,
}

impl Default for Gptq {
    fn default() -> Self {
        Self { damping: 0.01, order: Order::default() }
    }
}

/// Σ x·xᵀ over a matrix's inputs x: the lower half, row-major.
pub struct Hessian {
    cols: usize,
    sums: Vec<f32>,
}

/// Rows of the Hessian that are updated together.
const PANEL_ROWS: usize = 128;

impl Hessian {
    /// Returns the sums for inputs of `cols` values, before any input.
    pub fn new(cols: usize) -> Self {
        Self { cols, sums: vec![0.0; cols * cols] }
    }

    /// Adds `rows` inputs, which are `stride` values apart. Once `cancel` is set, the sums are undefined.
    pub fn add(&mut self, values: &[f32], rows: usize, stride: usize, cancel: &AtomicBool) {
        let n = self.cols;
        let x = strided(values, rows, n, stride);
        self.sums.par_chunks_mut(PANEL_ROWS * n).enumerate().for_each(|(i, panel)| {
            if cancel.load(Ordering::Relaxed) {
                return;
            }
            let height = panel.len() / n;
            let (start, end) = (i * PANEL_ROWS, i * PANEL_ROWS + height);
            let mut sums = strided_mut(panel, height, end, n);
            general_mat_mul(1.0, &x.slice(s![.., start..end]).t(), &x.slice(s![.., ..end]), 1.0, &mut sums);
        });
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.sums[i.max(j) * self.cols + i.min(j)]
    }
}

/// The factor for compensation: the upper triangular R of RᵀR = H⁻¹, with the columns in `order`.
pub struct Factor {
    order: Vec<usize>,
    /// Row-major.
    r: Vec<f32>,
}

impl Factor {
    /// Factors `hessian`, whose columns are whole blocks; `None` if inputs were not finite, or if `cancel` is set.
    /// Increases the damping as far as the inverse needs it.
    pub fn new(hessian: &Hessian, options: &Gptq, cancel: &AtomicBool) -> Option<Self> {
        let n = hessian.cols;
        if !(0..n).all(|i| hessian.at(i, i).is_finite()) {
            return None;
        }
        let order = column_order(n, options.order, |i| hessian.at(i, i));
        let mean = (0..n).map(|i| f64::from(hessian.at(i, i))).sum::<f64>() / n as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        let mut damping = options.damping.max(1e-6);
        while !cancel.load(Ordering::Relaxed) {
            // In reversed order H is L·Lᵀ, so in the original order it is U·Uᵀ with an upper triangular U; R is U⁻¹.
            let mut reversed = vec![0.0; n * n];
            reversed.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
                let a = order[n - 1 - i];
                (0..=i).for_each(|j| row[j] = hessian.at(a, order[n - 1 - j]));
                row[i] += damping * mean;
            });
            if cholesky(&mut reversed, n, cancel) {
                let mut r = invert(&reversed, n, cancel);
                drop(reversed);
                r.reverse();
                if r.iter().all(|v| v.is_finite()) {
                    return Some(Self { order, r });
                }
            }
            damping *= 10.0;
        }
        None
    }

    fn cols(&self) -> usize {
        self.order.len()
    }
}

/// Returns the columns in the order of rounding: whole blocks, each with its own order.
fn column_order(n: usize, order: Order, weight: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut blocks: Vec<Vec<usize>> = (0..n).step_by(BLOCK).map(|start| (start..start + BLOCK).collect()).collect();
    if order == Order::Largest {
        let sum = |block: &Vec<usize>| block.iter().map(|&i| weight(i)).sum::<f32>();
        blocks.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
        blocks.iter_mut().for_each(|block| block.sort_by(|&a, &b| weight(b).total_cmp(&weight(a))));
    }
    blocks.concat()
}

/// Rows that are rounded together, so that the factor is read once for all of them.
const TILE_ROWS: usize = 32;

/// Rounds the matrix `values` `[rows, cols]` to blocks of `dtype` in `out`. Returns the loss: Σ over rows of e·H·eᵀ,
/// where e is the change. An error names a row that cannot be stored. After `cancel`, `out` is invalid.
pub fn compensate(
    dtype: DType,
    values: &[f32],
    factor: &Factor,
    out: &mut [u8],
    cancel: &AtomicBool,
) -> Result<f64, (usize, Unfit)> {
    let n = factor.cols();
    let row_bytes = dtype.row_bytes(n).unwrap_or(0);
    let grid = Grid::new(dtype);
    let tiles = values.par_chunks(TILE_ROWS * n).zip(out.par_chunks_mut(TILE_ROWS * row_bytes)).enumerate();
    let costs = tiles.map(|(tile, (values, out))| {
        if cancel.load(Ordering::Relaxed) {
            return Ok(0.0);
        }
        let first = tile * TILE_ROWS;
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err((first + bad / n, Unfit::NotFinite));
        }
        round_tile(dtype, &grid, values, factor, out).map_err(|(row, unfit)| (first + row, unfit))
    });
    costs.collect::<Result<Vec<f64>, _>>().map(|costs| costs.iter().sum())
}

fn round_tile(
    dtype: DType,
    grid: &Grid,
    values: &[f32],
    factor: &Factor,
    out: &mut [u8],
) -> Result<f64, (usize, Unfit)> {
    let n = factor.cols();
    let mut cost = 0.0;
    let rows = values.len() / n;
    let row_bytes = out.len() / rows;
    // Columns in the order of rounding.
    let mut w: Vec<f32> =
        values.chunks_exact(n).flat_map(|row| factor.order.iter().map(|&column| row[column])).collect();
    let mut errors = vec![0.0; rows * BLOCK];
    for (start, columns) in (0..n).step_by(BLOCK).zip(factor.order.chunks_exact(BLOCK)) {
        let block = columns[0] / BLOCK;
        // The factor among the block's own columns, and the cost of an error in each of them after compensation.
        let inner: [[f32; BLOCK]; BLOCK] =
            std::array::from_fn(|i| std::array::from_fn(|j| factor.r[(start + i) * n + start + j]));
        let weights: [f32; BLOCK] = std::array::from_fn(|i| 1.0 / (inner[i][i] * inner[i][i]));
        for row in 0..rows {
            let mut x = [0.0; BLOCK];
            x.copy_from_slice(&w[row * n + start..][..BLOCK]);
            let plain = round_block(dtype, &x);
            if !plain.fits(dtype) {
                return Err((row, Unfit::Overflow));
            }
            let fit = search(grid, &x, &weights, &plain);
            let mut best = round_with_compensation(grid, &x, &inner, fit.d, fit.m);
            for factor in NEARBY_SCALES {
                let d = grid.scale(fit.d * factor);
                // Keeps the middle of the range.
                let m = if grid.has_min {
                    half::f16::from_f32(fit.m + (fit.d - d) * grid.reach[1] / 2.0).to_f32()
                } else {
                    0.0
                };
                let other = round_with_compensation(grid, &x, &inner, d, m);
                if other.cost < best.cost {
                    best = other;
                }
            }
            cost += f64::from(best.cost);
            let mut levels = [0.0; BLOCK];
            columns.iter().zip(best.levels).for_each(|(&column, level)| levels[column % BLOCK] = level);
            let bytes = &mut out[row * row_bytes + block * dtype.block_bytes()..][..dtype.block_bytes()];
            grid.block(best.d, best.m, &levels).store(dtype, bytes);
            errors[row * BLOCK..][..BLOCK].copy_from_slice(&best.errors);
        }
        let rest = start + BLOCK;
        if rest < n {
            let later = strided(&factor.r[start * n + rest..], BLOCK, n - rest, n);
            let errors = strided(&errors, rows, BLOCK, BLOCK);
            general_mat_mul(-1.0, &errors, &later, 1.0, &mut strided_mut(&mut w[rest..], rows, n - rest, n));
        }
    }
    Ok(cost)
}

/// Factors for scales near the one found without compensation.
const NEARBY_SCALES: [f32; 6] = [0.94, 0.96, 0.98, 1.02, 1.04, 1.06];

/// A block rounded with compensation among its columns.
struct Rounded {
    d: f32,
    m: f32,
    levels: [f32; BLOCK],
    /// The error of each column, divided by the factor's diagonal.
    errors: [f32; BLOCK],
    /// Σ errors².
    cost: f32,
}

fn round_with_compensation(grid: &Grid, x: &[f32; BLOCK], r: &[[f32; BLOCK]; BLOCK], d: f32, m: f32) -> Rounded {
    let inverse = inverse(d);
    let mut x = *x;
    let mut rounded = Rounded { d, m, levels: [0.0; BLOCK], errors: [0.0; BLOCK], cost: 0.0 };
    for i in 0..BLOCK {
        let level = grid.nearest_one((x[i] - m) * inverse);
        let error = (x[i] - (level * d + m)) / r[i][i];
        // The factor is zero before i.
        x.iter_mut().zip(&r[i]).for_each(|(x, r)| *x -= error * r);
        rounded.levels[i] = level;
        rounded.errors[i] = error;
        rounded.cost += error * error;
    }
    rounded
}
