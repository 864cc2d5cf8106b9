//! Whole operations on activations, parallelized over threads.
//!
//! Each operation splits its output into disjoint tasks (rows of a product, tokens, channels, KV heads) and passes raw
//! pointers to the kernels. The shapes that keep those pointers inside their slices are all checked here first.

use std::{num::NonZeroUsize, time::Duration};

use crate::{Kernels, MatMut, MatRef, Pool, bindings as hk};

mod attention;
mod limits;
mod matmul;

pub use attention::{Attention, KvRows, KvSpan};
use matmul::{QuantizedActs, STREAMS};
pub use matmul::{Weight, WeightType};

/// The arguments of [`Cpu::conv_silu`].
pub struct Conv<'a> {
    /// Input `[tokens, channels]`.
    pub u: MatRef<'a>,
    /// `[channels, taps]`, the last tap for the current token.
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
}

/// The arguments of [`Cpu::scan`].
pub struct Scan<'a> {
    /// Δ before its bias and softplus `[tokens, channels]`.
    pub dt: MatRef<'a>,
    /// `[channels]`
    pub dt_bias: &'a [f32],
    /// The convolution's output `[tokens, channels]`.
    pub u: MatRef<'a>,
    /// `[tokens, channels]`
    pub gate: MatRef<'a>,
    /// B `[tokens, states]`.
    pub b: MatRef<'a>,
    /// C `[tokens, states]`.
    pub c: MatRef<'a>,
    /// A `[channels, states]`.
    pub a: &'a [f32],
    /// D `[channels]`.
    pub d: &'a [f32],
}

/// The CPU: kernels, threads, and scratch memory.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    /// The quantized activations of a product.
    acts: QuantizedActs,
    /// Transposed keys, and partial results of the attention heads' output.
    scores: Vec<f32>,
}

/// A pointer shared by tasks, each of which writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: the operations below hand disjoint parts to their tasks.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Returns the address of value `i`; the caller stays inside the slice that the pointer was made from.
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Calls a kernel of the table.
macro_rules! call {
    ($table:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: every table is complete, and the calling operation has checked that the sizes keep the kernel inside
        // the slices; parts written by different tasks are disjoint.
        unsafe { ($table.table().$name.unwrap_unchecked())($($arg),*) }
    };
}
use call;

/// Returns the length of each of about `parts` parts of `n` items, a multiple of `unit`.
fn part(n: usize, parts: usize, unit: usize) -> usize {
    n.div_ceil(parts.max(1)).next_multiple_of(unit).max(unit)
}

impl Cpu {
    /// Returns the fastest kernels of this CPU on `threads` threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self::with_kernels(Kernels::best(), threads)
    }

    /// Returns the given kernels on `threads` threads.
    pub fn with_kernels(kernels: Kernels, threads: NonZeroUsize) -> Self {
        Self { kernels, pool: Pool::new(threads), acts: QuantizedActs::default(), scores: Vec::new() }
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Returns the name of the instruction set in use.
    pub fn kernels(&self) -> &'static str {
        self.kernels.name()
    }

    /// Runs `f(token)` for every token, in parallel if there are many.
    fn each_token(&mut self, tokens: usize, f: impl Fn(usize) + Sync) {
        let size = part(tokens, 4 * self.pool.threads(), 1);
        self.pool.run(tokens.div_ceil(size), |task, _| (task * size..tokens.min((task + 1) * size)).for_each(&f));
    }

    /// Adds `bias [cols]` to every row.
    pub fn add_bias(&mut self, mut x: MatMut<'_>, bias: &[f32]) {
        assert!(bias.len() == x.cols, "add_bias: shapes differ");
        for t in 0..x.rows {
            x.row_mut(t).iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    /// out = x / √(mean(x²) + eps) ⊙ gain, row by row.
    pub fn rms_norm(&mut self, x: MatRef<'_>, gain: &[f32], eps: f32, out: MatMut<'_>) {
        assert!(x.cols == gain.len() && out.cols == x.cols && out.rows == x.rows, "rms_norm: shapes differ");
        let (kernels, y, stride) = (self.kernels, Shared(out.data.as_mut_ptr()), out.stride);
        self.each_token(x.rows, |t| {
            let row = x.row(t);
            call!(kernels, rms_norm(row.as_ptr(), gain.as_ptr(), eps, row.len(), y.at(t * stride)));
        });
    }

    /// RMSNorm of every head of `gain.len()` columns, in place.
    pub fn head_norm(&mut self, x: MatMut<'_>, gain: &[f32], eps: f32) {
        let (dim, cols, stride) = (gain.len(), x.cols, x.stride);
        assert!(dim > 0 && cols.is_multiple_of(dim), "head_norm: {cols} columns are not whole heads of {dim}");
        let (kernels, data) = (self.kernels, Shared(x.data.as_mut_ptr()));
        self.each_token(x.rows, |t| {
            for head in 0..cols / dim {
                let p = data.at(t * stride + head * dim);
                call!(kernels, rms_norm(p, gain.as_ptr(), eps, dim, p));
            }
        });
    }

    /// out = ½·(RMSNorm(a; gain_a) + RMSNorm(b; gain_b)), row by row.
    pub fn fuse(&mut self, a: MatRef<'_>, gain_a: &[f32], b: MatRef<'_>, gain_b: &[f32], eps: f32, out: MatMut<'_>) {
        let n = out.cols;
        assert!([a.cols, b.cols, gain_a.len(), gain_b.len()] == [n; 4], "fuse: widths differ");
        assert!(a.rows == out.rows && b.rows == out.rows, "fuse: tokens differ");
        let (kernels, y, stride) = (self.kernels, Shared(out.data.as_mut_ptr()), out.stride);
        self.each_token(a.rows, |t| {
            let (a, b) = (a.row(t).as_ptr(), b.row(t).as_ptr());
            call!(kernels, fuse(a, gain_a.as_ptr(), b, gain_b.as_ptr(), eps, n, y.at(t * stride)));
        });
    }

    /// Rotates the heads of `dim` columns, in place; cos and sin `[tokens, dim / 2]`.
    pub fn rope(&mut self, x: MatMut<'_>, dim: usize, cos: &[f32], sin: &[f32]) {
        let (half, cols, stride) = (dim / 2, x.cols, x.stride);
        assert!(dim > 0 && dim.is_multiple_of(2) && cols.is_multiple_of(dim), "rope: {cols} columns, heads of {dim}");
        assert!(cos.len() >= x.rows * half && sin.len() >= x.rows * half, "rope: angles are missing");
        let (kernels, data) = (self.kernels, Shared(x.data.as_mut_ptr()));
        self.each_token(x.rows, |t| {
            let (cos, sin) = (cos[t * half..].as_ptr(), sin[t * half..].as_ptr());
            call!(kernels, rope(data.at(t * stride), cols / dim, dim, cos, sin));
        });
    }

    /// Converts x to half floats, with packed rows.
    pub fn to_f16(&mut self, x: MatRef<'_>, out: &mut [u16]) {
        assert!(out.len() >= x.rows * x.cols, "to_f16: the output is too short");
        let (kernels, y) = (self.kernels, Shared(out.as_mut_ptr()));
        self.each_token(x.rows, |t| {
            call!(kernels, to_f16(x.row(t).as_ptr(), x.cols, y.at(t * x.cols)));
        });
    }

    /// out = silu(conv(u)); `state [taps - 1, channels]` holds the inputs before the first token, and `next` receives
    /// the last ones.
    pub fn conv_silu(&mut self, a: &Conv<'_>, state: &[f32], next: &mut [f32], out: MatMut<'_>) {
        let channels = a.u.cols;
        let taps = a.weight.len() / channels;
        assert!(taps > 0 && a.weight.len() == taps * channels, "conv: the weight is not a whole number of taps");
        assert!([state.len(), next.len()] == [(taps - 1) * channels; 2], "conv: the state has the wrong size");
        assert!(a.bias.is_none_or(|b| b.len() == channels), "conv: the bias has the wrong size");
        assert!(out.cols == channels && out.rows == a.u.rows, "conv: shapes differ");
        // No published model has more taps than the vector kernels support.
        let kernels = if taps <= hk::HK_CONV_TAPS as usize { self.kernels } else { Kernels::scalar() };
        let next = Shared(next.as_mut_ptr());
        let (y, out_stride) = (Shared(out.data.as_mut_ptr()), out.stride);
        let size = part(channels, 4 * self.pool.threads(), 16);
        self.pool.run(channels.div_ceil(size), |task, _| {
            let c = task * size;
            let args = hk::hk_conv {
                u: a.u.data.as_ptr().wrapping_add(c),
                u_stride: a.u.stride,
                tokens: a.u.rows,
                channels: size.min(channels - c),
                taps,
                weight: a.weight[c * taps..].as_ptr(),
                bias: a.bias.map_or(std::ptr::null(), |b| b[c..].as_ptr()),
                state: state.as_ptr().wrapping_add(c),
                next: next.at(c),
                state_stride: channels,
                out: y.at(c),
                out_stride,
            };
            call!(kernels, conv_silu(&args));
        });
    }

    /// The selective scan with its D term and gate; `h [channels, states]` is the state before the first token, and `next`
    /// receives the one after the last.
    pub fn scan(&mut self, a: &Scan<'_>, h: &[f32], next: &mut [f32], out: MatMut<'_>) {
        let (tokens, channels, states) = (out.rows, out.cols, a.b.cols);
        assert!([a.dt.cols, a.u.cols, a.gate.cols, a.dt_bias.len(), a.d.len()] == [channels; 5], "scan: widths differ");
        assert!([a.dt.rows, a.u.rows, a.gate.rows, a.b.rows, a.c.rows] == [tokens; 5], "scan: tokens differ");
        assert!([a.a.len(), h.len(), next.len()] == [channels * states; 3], "scan: the state has the wrong size");
        assert!(a.c.cols == states && a.b.stride == a.c.stride, "scan: B and C differ");
        let (kernels, next) = (self.kernels, Shared(next.as_mut_ptr()));
        let (y, y_stride) = (Shared(out.data.as_mut_ptr()), out.stride);
        let size = part(channels, 4 * self.pool.threads(), 16);
        self.pool.run(channels.div_ceil(size), |task, _| {
            let c = task * size;
            let args = hk::hk_scan {
                dt: a.dt.data.as_ptr().wrapping_add(c),
                u: a.u.data.as_ptr().wrapping_add(c),
                gate: a.gate.data.as_ptr().wrapping_add(c),
                dt_stride: a.dt.stride,
                u_stride: a.u.stride,
                gate_stride: a.gate.stride,
                b: a.b.data.as_ptr(),
                c: a.c.data.as_ptr(),
                bc_stride: a.b.stride,
                dt_bias: a.dt_bias[c..].as_ptr(),
                d: a.d[c..].as_ptr(),
                a: a.a[c * states..].as_ptr(),
                h: h[c * states..].as_ptr(),
                next: next.at(c * states),
                tokens,
                channels: size.min(channels - c),
                states,
                y: y.at(c),
                y_stride,
            };
            call!(kernels, scan(&args));
        });
    }

    /// up = silu(gate) ⊙ up, in place.
    pub fn silu_mul(&mut self, gate: MatRef<'_>, up: MatMut<'_>) {
        let n = up.cols;
        assert!(gate.cols == n && gate.rows == up.rows, "silu_mul: shapes differ");
        let (kernels, y, stride) = (self.kernels, Shared(up.data.as_mut_ptr()), up.stride);
        let size = part(n, self.pool.threads(), 16);
        let parts = n.div_ceil(size);
        self.pool.run(up.rows * parts, |task, _| {
            let (t, c) = (task / parts, task % parts * size);
            let p = y.at(t * stride + c);
            call!(kernels, silu_mul(gate.row(t)[c..].as_ptr(), p, size.min(n - c), p));
        });
    }

    /// x = relu(x)², in place.
    pub fn relu2(&mut self, x: MatMut<'_>) {
        let (kernels, cols, data, stride) = (self.kernels, x.cols, Shared(x.data.as_mut_ptr()), x.stride);
        self.each_token(x.rows, |t| call!(kernels, relu2(data.at(t * stride), cols)));
    }

    /// Starts or stops measuring how long the calling thread waits for the others.
    pub fn measure_waiting(&mut self, on: bool) {
        self.pool.measure_waiting(on);
    }

    /// Returns how long the calling thread has waited for the others since [`Cpu::measure_waiting`].
    pub fn waited(&self) -> Duration {
        self.pool.waited()
    }
}
