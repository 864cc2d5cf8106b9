//! Whole operations on activations, spread over threads.
//!
//! Each splits its output into parts that no two tasks share (rows of a product, tokens, channels, kv heads) and
//! hands the kernels raw pointers to them; all the shapes that keep those pointers inside their slices are checked
//! here, first.

use std::{num::NonZeroUsize, time::Duration};

use crate::{
    Kernels, Mat, MatMut, Pool,
    bindings::{self as hk, hk_type},
};

mod attention;
mod limits;

pub use crate::bindings::hk_type as WeightType;
pub use attention::{Attention, KvRows, Run};

/// Values in a block of quantized weights and activations.
const BLOCK: usize = hk::HK_BLOCK as usize;
/// Runs of rows that `matvec` reads at once.
const STREAMS: usize = hk::HK_STREAMS as usize;

/// A weight matrix `[rows, cols]` as it is stored, row after row.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// How the values are stored.
    pub dtype: WeightType,
    /// Rows: outputs of the product.
    pub rows: usize,
    /// Columns: inputs of the product.
    pub cols: usize,
    /// All rows, without gaps.
    pub bytes: &'a [u8],
}

/// Bytes of a block of 32 values, or of one float; of a packed matrix, an eighth of eight rows' block.
fn block_bytes(dtype: WeightType) -> usize {
    match dtype {
        hk_type::HK_F32 => 4,
        hk_type::HK_F16 | hk_type::HK_BF16 => 2,
        hk_type::HK_Q8_0 | hk_type::HK_Q8_0X8 => 34,
        hk_type::HK_Q5_1 | hk_type::HK_Q5_1X8 => 24,
        hk_type::HK_Q5_0 | hk_type::HK_Q5_0X8 => 22,
        hk_type::HK_Q4_1 | hk_type::HK_Q4_1X8 => 20,
        hk_type::HK_Q4_0 | hk_type::HK_Q4_0X8 | hk_type::HK_IQ4_NL | hk_type::HK_IQ4_NLX8 => 18,
        hk_type::HK_MXFP4 | hk_type::HK_MXFP4X8 => 17,
    }
}

impl Weight<'_> {
    /// Bytes of a row; of a packed matrix, an eighth of a group.
    fn row_bytes(&self) -> usize {
        block_bytes(self.dtype) * if self.quantized() { self.cols / BLOCK } else { self.cols }
    }

    fn quantized(&self) -> bool {
        !matches!(self.dtype, hk_type::HK_F32 | hk_type::HK_F16 | hk_type::HK_BF16)
    }

    /// Are eight rows interleaved?
    fn packed(&self) -> bool {
        self.dtype as u32 & hk::HK_X8 != 0
    }

    /// Rows that are stored: packed matrices have whole groups of eight.
    fn stored_rows(&self) -> usize {
        if self.packed() { self.rows.next_multiple_of(8) } else { self.rows }
    }
}

/// What [`Cpu::conv_silu`] reads.
pub struct Conv<'a> {
    /// Input `[tokens, channels]`.
    pub u: Mat<'a>,
    /// `[channels, taps]`, the last tap meets the present.
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
}

/// What [`Cpu::scan`] reads.
pub struct Scan<'a> {
    /// Δ before its bias and softplus `[tokens, channels]`.
    pub dt: Mat<'a>,
    /// `[channels]`
    pub dt_bias: &'a [f32],
    /// The convolution's output `[tokens, channels]`.
    pub u: Mat<'a>,
    /// `[tokens, channels]`
    pub gate: Mat<'a>,
    /// B `[tokens, states]`.
    pub b: Mat<'a>,
    /// C `[tokens, states]`.
    pub c: Mat<'a>,
    /// A `[channels, states]`.
    pub a: &'a [f32],
    /// D `[channels]`.
    pub d: &'a [f32],
}

/// The CPU: kernels, threads, and scratch memory.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    /// Bytes that a thread asks for ahead in each of the places where it reads a matrix.
    ahead: usize,
    /// Activations as int8 blocks: values, scales, offsets.
    quantized: (Vec<i8>, Vec<f32>, Vec<i32>),
    /// Turned keys, and parts of the attention heads' output.
    scores: Vec<f32>,
}

/// How far ahead, in bytes, a matrix that meets a single token is best asked for. AMD's own prefetchers bring in what is
/// read at several places, but for the last step, and what is asked for far ahead slows them (Zen 3); Intel's do not keep
/// memory busy (Granite Rapids).
fn best_ahead() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let id = std::arch::x86_64::__cpuid(0);
        let amd = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        if [id.ebx, id.edx, id.ecx] == amd {
            return 320;
        }
    }
    2048
}

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: the operations below hand disjoint parts to their tasks.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address `i` values on; the caller stays inside the slice the pointer was made from.
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Calls a kernel of the table.
macro_rules! call {
    ($table:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: every table is complete, and the operation that calls has checked that the sizes it passes keep the
        // kernel inside the slices; parts that other tasks write are disjoint.
        unsafe { ($table.table().$name.unwrap_unchecked())($($arg),*) }
    };
}
use call;

/// `n` items in parts of a multiple of `unit`, about `parts` of them: the length of a part.
fn part(n: usize, parts: usize, unit: usize) -> usize {
    n.div_ceil(parts.max(1)).next_multiple_of(unit).max(unit)
}

impl Cpu {
    /// The fastest kernels this CPU has, on `threads` threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self::with_kernels(Kernels::best(), threads)
    }

    /// Chosen kernels on `threads` threads.
    pub fn with_kernels(kernels: Kernels, threads: NonZeroUsize) -> Self {
        let ahead = best_ahead();
        Self { kernels, pool: Pool::new(threads), ahead, quantized: Default::default(), scores: Vec::new() }
    }

    /// Threads at work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set at work.
    pub fn kernels(&self) -> &'static str {
        self.kernels.name()
    }

    /// Runs `f(token)` for every token, in parallel where there are many.
    fn each_token(&mut self, tokens: usize, f: impl Fn(usize) + Sync) {
        let size = part(tokens, 4 * self.pool.threads(), 1);
        self.pool.run(tokens.div_ceil(size), |task, _| (task * size..tokens.min((task + 1) * size)).for_each(&f));
    }

    /// `out[t, r] = or += W[r] · x[t]`; x `[tokens, cols]`, out `[tokens, rows]`. Quantized weights meet activations
    /// rounded to int8 blocks of 32.
    ///
    /// # Panics
    /// If the shapes do not fit together.
    pub fn matmul(&mut self, w: Weight<'_>, x: Mat<'_>, out: MatMut<'_>, accumulate: bool) {
        self.products([w], x, [out], accumulate, |_, _| ());
    }

    /// out = silu(gate) ⊙ (U·x) with gate = G·x: as two times [`Cpu::matmul`] and [`Cpu::silu_mul`], to the last bit.
    /// `gate` and `out` are `[tokens, rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit together.
    pub fn gated_matmul(&mut self, [g, u]: [Weight<'_>; 2], x: Mat<'_>, gate: MatMut<'_>, out: MatMut<'_>) {
        let (kernels, tokens) = (self.kernels, x.rows);
        let (gates, ups) = (Shared(gate.data.as_mut_ptr()), Shared(out.data.as_mut_ptr()));
        let (gate_stride, stride) = (gate.stride, out.stride);
        self.products([g, u], x, [gate, out], false, |first, n| {
            for t in 0..tokens {
                let up = ups.at(t * stride + first);
                call!(kernels, silu_mul(gates.at(t * gate_stride + first), up, n, up));
            }
        });
    }

    /// Products of one x with matrices of one shape, each task's rows of them one after the other; then, for these rows,
    /// `then(first, rows)`.
    fn products<const N: usize>(
        &mut self,
        w: [Weight<'_>; N],
        x: Mat<'_>,
        out: [MatMut<'_>; N],
        accumulate: bool,
        then: impl Fn(usize, usize) + Sync,
    ) {
        let (tokens, rows, cols) = (x.rows, w[0].rows, w[0].cols);
        for (w, out) in w.iter().zip(&out) {
            assert!(x.cols == w.cols && out.cols == w.rows && out.rows == tokens, "matmul: shapes differ");
            assert!((w.rows, w.cols) == (rows, cols), "matmul: matrices differ");
            let bytes = w.stored_rows() * w.row_bytes();
            assert!(w.bytes.len() == bytes, "matmul: {} bytes for {} rows", w.bytes.len(), w.rows);
        }
        let kernels = self.kernels;
        let mut act = hk::hk_act {
            x: x.data.as_ptr(),
            stride: x.stride,
            q: std::ptr::null(),
            d: std::ptr::null(),
            offset: std::ptr::null(),
        };
        if w.iter().any(Weight::quantized) {
            assert!(cols.is_multiple_of(BLOCK), "matmul: rows of {cols} have no whole blocks");
            let blocks = cols / BLOCK;
            let (q, d, offset) = &mut self.quantized;
            q.resize(q.len().max(tokens * cols), 0);
            d.resize(d.len().max(tokens * blocks), 0.0);
            offset.resize(offset.len().max(tokens * blocks), 0);
            let (q, d, offset) = (Shared(q.as_mut_ptr()), Shared(d.as_mut_ptr()), Shared(offset.as_mut_ptr()));
            self.each_token(tokens, |t| {
                call!(
                    kernels,
                    quantize(x.row(t).as_ptr(), cols, q.at(t * cols), d.at(t * blocks), offset.at(t * blocks))
                );
            });
            (act.q, act.d, act.offset) = (q.0, d.0, offset.0);
        }
        let act = Shared(&raw mut act);
        let out = out.map(|out| (Shared(out.data.as_mut_ptr()), out.stride));
        // A single token's rows are read at several places at once, which is faster: a task has some from each of `runs`
        // runs of the same length, in every matrix, and the rows that are left are one more task. Matrices of one type
        // are read together.
        let ahead = self.ahead;
        let matvec = kernels.table().matvec.filter(|_| tokens == 1 && w.iter().all(|w| w.packed() || !w.quantized()));
        let together = if w.iter().all(|m| m.dtype == w[0].dtype) { N } else { 1 };
        let runs = if matvec.is_some() { STREAMS / together } else { 1 };
        let run = if runs > 1 { rows / (runs * 8) * 8 } else { rows };
        // Enough parts to even out threads that the system slows, each at least a microsecond of reading.
        let (unit, parts) = if runs > 1 { (8, 128) } else { (16, 32 * N) };
        let row_bytes: usize = w.iter().map(|w| w.row_bytes() * runs).sum();
        let smallest = (16 * 1024 / row_bytes.max(1)).max(1).next_multiple_of(unit);
        let part = part(run, parts * self.pool.threads(), unit).max(smallest);
        let (tasks, left) = (run.div_ceil(part), rows - runs * run);
        self.pool.run(tasks + usize::from(left > 0), |task, _| {
            let whole = task < tasks;
            let first = if whole { task * part } else { runs * run };
            let n = if whole { part.min(run - first) } else { left };
            let at = |i: usize, row: usize| (w[i].bytes[row * w[i].row_bytes()..].as_ptr().cast(), out[i].0.at(row));
            let accumulate = i32::from(accumulate);
            match matvec {
                Some(matvec) if whole => {
                    for i in (0..N).step_by(together) {
                        let places: [_; STREAMS] = std::array::from_fn(|s| at(i + s / runs, first + s % runs * run));
                        let (bytes, y) = (places.map(|p| p.0), places.map(|p| p.1));
                        let (bytes, y) = (bytes.as_ptr(), y.as_ptr());
                        // SAFETY: as with `call!`; all rows of all runs are the matrices', in whole groups of eight.
                        unsafe { matvec(w[i].dtype, bytes, n, cols, ahead, act.at(0), y, accumulate) };
                    }
                    (0..runs).for_each(|s| then(first + s * run, n));
                }
                _ => {
                    for (i, (w, (_, stride))) in w.iter().zip(&out).enumerate() {
                        let (bytes, y) = at(i, first);
                        call!(kernels, matmul(w.dtype, bytes, n, cols, act.at(0), tokens, y, *stride, accumulate));
                    }
                    then(first, n);
                }
            }
        });
    }

    /// Adds `bias [cols]` to every row.
    pub fn add_bias(&mut self, mut x: MatMut<'_>, bias: &[f32]) {
        assert!(bias.len() == x.cols, "add_bias: shapes differ");
        for t in 0..x.rows {
            x.row_mut(t).iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    /// out = x / √(mean(x²) + eps) ⊙ gain, row by row.
    pub fn rms_norm(&mut self, x: Mat<'_>, gain: &[f32], eps: f32, out: MatMut<'_>) {
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
        assert!(dim > 0 && cols.is_multiple_of(dim), "head_norm: {cols} columns are no heads of {dim}");
        let (kernels, data) = (self.kernels, Shared(x.data.as_mut_ptr()));
        self.each_token(x.rows, |t| {
            for head in 0..cols / dim {
                let p = data.at(t * stride + head * dim);
                call!(kernels, rms_norm(p, gain.as_ptr(), eps, dim, p));
            }
        });
    }

    /// out = ½·(RMSNorm(a; gain_a) + RMSNorm(b; gain_b)), row by row.
    pub fn fuse(&mut self, a: Mat<'_>, gain_a: &[f32], b: Mat<'_>, gain_b: &[f32], eps: f32, out: MatMut<'_>) {
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

    /// x to half floats, rows without gaps.
    pub fn to_f16(&mut self, x: Mat<'_>, out: &mut [u16]) {
        assert!(out.len() >= x.rows * x.cols, "to_f16: the output is too short");
        let (kernels, y) = (self.kernels, Shared(out.as_mut_ptr()));
        self.each_token(x.rows, |t| {
            call!(kernels, to_f16(x.row(t).as_ptr(), x.cols, y.at(t * x.cols)));
        });
    }

    /// out = silu(conv(u)); `state [taps - 1, channels]` holds the inputs before the first, and `next` gets the last ones.
    pub fn conv_silu(&mut self, a: &Conv<'_>, state: &[f32], next: &mut [f32], out: MatMut<'_>) {
        let channels = a.u.cols;
        let taps = a.weight.len() / channels;
        assert!(taps > 0 && a.weight.len() == taps * channels, "conv: the weight has no whole taps");
        assert!([state.len(), next.len()] == [(taps - 1) * channels; 2], "conv: the state has the wrong size");
        assert!(a.bias.is_none_or(|b| b.len() == channels), "conv: the bias has the wrong size");
        assert!(out.cols == channels && out.rows == a.u.rows, "conv: shapes differ");
        let (kernels, next) = (self.kernels, Shared(next.as_mut_ptr()));
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
    /// gets the one after the last.
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
    pub fn silu_mul(&mut self, gate: Mat<'_>, up: MatMut<'_>) {
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

    /// From now on, measures how long the calling thread waits for the others.
    pub fn measure_waiting(&mut self, on: bool) {
        self.pool.measure_waiting(on);
    }

    /// How long the calling thread has waited for the others since [`Cpu::measure_waiting`].
    pub fn waited(&self) -> Duration {
        self.pool.waited()
    }
}
