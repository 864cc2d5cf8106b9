//! Blocked Cholesky factorization and inversion of large matrices; block products take nearly all the time.

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder, linalg::general_mat_mul, s};
use rayon::prelude::*;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// Returns a matrix view whose rows are `stride` values apart.
pub(super) fn strided(values: &[f32], rows: usize, cols: usize, stride: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols).strides((stride, 1)), values).expect("the slice holds all rows")
}

pub(super) fn strided_mut(values: &mut [f32], rows: usize, cols: usize, stride: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, cols).strides((stride, 1)), values).expect("the slice holds all rows")
}

/// Replaces the lower half of `a` `[n, n]`, row-major, by L with L·Lᵀ = a. The upper half is unused, except inside the
/// blocks of the diagonal. Returns `false` if `a` is not positive definite within the precision of F32, or if `cancel` is
/// set; the contents of `a` are undefined then.
pub fn cholesky(a: &mut [f32], n: usize, cancel: &AtomicBool) -> bool {
    for start in (0..n).step_by(BLOCK) {
        if cancel.load(Ordering::Relaxed) {
            return false;
        }
        let end = (start + BLOCK).min(n);
        let size = end - start;
        let (done, below) = a.split_at_mut(end * n);
        for i in start..end {
            for j in start..=i {
                let dot = |from: &[f32]| {
                    let (x, y) = (&from[i * n + start..i * n + j], &from[j * n + start..j * n + j]);
                    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
                };
                let rest = f64::from(done[i * n + j]) - dot(done);
                if i == j {
                    // NaN counts as not positive.
                    if rest.is_nan() || rest <= 0.0 {
                        return false;
                    }
                    done[i * n + j] = rest.sqrt() as f32;
                } else {
                    done[i * n + j] = (rest / f64::from(done[j * n + j])) as f32;
                }
            }
        }
        if below.is_empty() {
            break;
        }
        // The rows below: solve x·Lᵀ = a by forward substitution.
        let diagonal = &done[start * n..];
        below.par_chunks_exact_mut(n).for_each(|row| {
            let x = &mut row[start..end];
            for j in 0..size {
                let l = &diagonal[j * n + start..][..=j];
                let sum: f32 = x[..j].iter().zip(l).map(|(x, l)| x * l).sum();
                x[j] = (x[j] - sum) / l[j];
            }
        });
        // Subtract their product from the remaining matrix.
        let rows = below.len() / n;
        let mut panel = vec![0.0; rows * size];
        panel.chunks_exact_mut(size).zip(below.chunks_exact(n)).for_each(|(to, row)| {
            to.copy_from_slice(&row[start..end]);
        });
        let panel = strided(&panel, rows, size, size);
        below.par_chunks_mut(BLOCK * n).enumerate().for_each(|(i, rest)| {
            let height = rest.len() / n;
            let (from, to) = (i * BLOCK, i * BLOCK + height);
            let mut rest = strided_mut(&mut rest[end..], height, to, n);
            general_mat_mul(-1.0, &panel.slice(s![from..to, ..]), &panel.slice(s![..to, ..]).t(), 1.0, &mut rest);
        });
    }
    true
}

/// Returns the inverse of the lower triangular `l` `[n, n]`, row-major, with zeros above the diagonal. The result is
/// undefined once `cancel` is set.
pub fn invert(l: &[f32], n: usize, cancel: &AtomicBool) -> Vec<f32> {
    let mut inverse = vec![0.0; n * n];
    for start in (0..n).step_by(BLOCK) {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        let end = (start + BLOCK).min(n);
        let (above, rows) = inverse.split_at_mut(start * n);
        let rows = &mut rows[..(end - start) * n];
        if start > 0 {
            let above = strided(above, start, start, n);
            const ROWS_AT_ONCE: usize = 16;
            rows.par_chunks_mut(ROWS_AT_ONCE * n).enumerate().for_each(|(i, rows)| {
                let height = rows.len() / n;
                let left = strided(&l[(start + i * ROWS_AT_ONCE) * n..], height, start, n);
                general_mat_mul(-1.0, &left, &above, 0.0, &mut strided_mut(rows, height, start, n));
            });
        }
        // The block's own rows of L: forward substitution.
        for i in 0..end - start {
            let (before, row) = rows.split_at_mut(i * n);
            let row = &mut row[..end];
            row[start + i] = 1.0;
            let l = &l[(start + i) * n + start..][..=i];
            for (before, l) in before.chunks_exact(n).zip(l) {
                row.iter_mut().zip(before).for_each(|(x, y)| *x -= l * y);
            }
            let scale = 1.0 / l[i];
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positive definite, and not nearly diagonal.
    fn matrix(n: usize) -> Vec<f32> {
        let x = |i: usize, t: usize| ((i * 7919 + t * 104_729 + i * t * 31) % 1009) as f32 / 1009.0 - 0.5;
        let value = |i: usize, j: usize| {
            (0..2 * n).map(|t| x(i, t) * x(j, t)).sum::<f32>() / n as f32 + if i == j { 0.1 } else { 0.0 }
        };
        (0..n * n).map(|i| value(i / n, i % n)).collect()
    }

    #[test]
    fn factors_and_inverts() {
        for n in [1, 5, 64, 96, 200] {
            let a = matrix(n);
            let mut l = a.clone();
            let (no_cancel, cancelled) = (AtomicBool::new(false), AtomicBool::new(true));
            assert!(cholesky(&mut l, n, &no_cancel) && !cholesky(&mut a.clone(), n, &cancelled));
            let inverse = invert(&l, n, &no_cancel);
            for i in 0..n {
                for j in 0..n {
                    let product: f32 = (0..=i.min(j)).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((product - a[i * n + j]).abs() < 1e-5, "{n}: {i}, {j}");
                    let product: f32 = (0..=i).map(|k| l[i * n + k] * inverse[k * n + j]).sum();
                    assert!((product - f32::from(i == j)).abs() < 1e-4, "{n}: {i}, {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn matrices_without_a_factor_are_detected() {
        let mut a = matrix(80);
        a[70 * 80 + 70] = -1.0;
        let no_cancel = AtomicBool::new(false);
        assert!(!cholesky(&mut a, 80, &no_cancel));
        assert!(!cholesky(&mut [f32::NAN], 1, &no_cancel));
    }
}
