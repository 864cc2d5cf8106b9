//! Products with weight matrices.

use super::{Cpu, Shared, call, part};
pub use crate::bindings::hk_type as WeightType;
use crate::{
    Mat, MatMut, TypeFacts,
    bindings::{self as hk, hk_type},
};

/// Values in a block of quantized weights and activations.
const BLOCK: usize = hk::HK_BLOCK as usize;
/// Runs of rows that `gemv` reads at once.
pub(super) const STREAMS: usize = hk::HK_STREAMS as usize;
/// Tokens that `gemv` takes at most.
const FEW_TOKENS: usize = hk::HK_FEW_TOKENS as usize;

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

impl Weight<'_> {
    /// Bytes of a row; of a packed matrix, an eighth of a group.
    fn row_bytes(&self) -> usize {
        match TypeFacts::of(self.dtype) {
            Some(facts) => facts.block_bytes() * (self.cols / BLOCK),
            None => self.cols * if self.dtype == hk_type::HK_F32 { 4 } else { 2 },
        }
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

/// Bytes that kernels may read behind the values of interleaved tokens.
const SLACK: usize = 12;

/// Activations as int8 blocks: values, scales and offsets.
#[derive(Default)]
struct Blocks {
    q: Vec<i8>,
    d: Vec<f32>,
    offset: Vec<i32>,
}

impl Blocks {
    /// Returns room for `tokens` rows of `cols` values; what it holds is of no account.
    fn room(&mut self, tokens: usize, cols: usize) -> BlocksMut {
        let blocks = tokens * (cols / BLOCK);
        self.q.resize(self.q.len().max(blocks * BLOCK + SLACK), 0);
        self.d.resize(self.d.len().max(blocks), 0.0);
        self.offset.resize(self.offset.len().max(blocks), 0);
        BlocksMut {
            q: Shared(self.q.as_mut_ptr()),
            d: Shared(self.d.as_mut_ptr()),
            offset: Shared(self.offset.as_mut_ptr()),
        }
    }
}

/// Where [`Blocks`] are; tasks write disjoint parts.
#[derive(Clone, Copy)]
struct BlocksMut {
    q: Shared<i8>,
    d: Shared<f32>,
    offset: Shared<i32>,
}

/// The activations of a product, as quantized matrices read them.
#[derive(Default)]
pub(super) struct QuantizedActs {
    /// Token by token.
    by_token: Blocks,
    /// Few tokens interleaved.
    interleaved: Blocks,
}

/// The prefetch distance in bytes, in each of the places where a matrix is read for few tokens. AMD's own prefetchers bring
/// in what is read at several places, but for the last step, and what is prefetched farther slows them where a single
/// token's arithmetic takes no time (Zen 3); Intel's do not keep memory busy (Granite Rapids).
fn prefetch_distance(tokens: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let id = std::arch::x86_64::__cpuid(0);
        let amd = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        if [id.ebx, id.edx, id.ecx] == amd {
            return if tokens == 1 { 320 } else { 1024 };
        }
    }
    let _ = tokens;
    2048
}

/// How the rows of matrices of one shape are split into tasks.
///
/// The rows of few tokens are read at several places at once, which is faster: a task has some from each of `runs` runs of the
/// same length, in every matrix, and the rows that are left are one more task.
struct RowPlan {
    rows: usize,
    /// Runs in each matrix.
    runs: usize,
    /// Rows of a run.
    run: usize,
    /// Rows of a run that a task has.
    part: usize,
}

impl RowPlan {
    /// Plans products of `w`, whose rows are read at `runs` places each.
    fn new(w: &[Weight<'_>], runs: usize, threads: usize) -> Self {
        let rows = w[0].rows;
        let run = if runs > 1 { rows / (runs * 8) * 8 } else { rows };
        // Enough parts to even out threads that the system slows, each at least a microsecond of reading.
        let (unit, parts) = if runs > 1 { (8, 128) } else { (16, 32 * w.len()) };
        let row_bytes: usize = w.iter().map(|w| w.row_bytes() * runs).sum();
        let smallest = (16 * 1024 / row_bytes.max(1)).max(1).next_multiple_of(unit);
        Self { rows, runs, run, part: part(run, parts * threads, unit).max(smallest) }
    }

    /// Tasks with rows of all runs.
    fn whole_tasks(&self) -> usize {
        self.run.div_ceil(self.part)
    }

    fn tasks(&self) -> usize {
        self.whole_tasks() + usize::from(self.rows > self.runs * self.run)
    }

    /// The first row of a task, in the first run, and the number of its rows in each; `None` of the task of rows that are left,
    /// which are those from `runs * run` on.
    fn whole(&self, task: usize) -> Option<(usize, usize)> {
        let first = task * self.part;
        (task < self.whole_tasks()).then(|| (first, self.part.min(self.run - first)))
    }
}

impl Cpu {
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

    /// Rounds x to int8 blocks, token by token and, if `few`, interleaved too: the activations of [`Cpu::matmul`] for kernels
    /// that read the one or the other.
    fn quantize_activations(&mut self, x: Mat<'_>, few: bool) -> [hk::hk_act; 2] {
        let (tokens, cols, kernels) = (x.rows, x.cols, self.kernels);
        assert!(cols.is_multiple_of(BLOCK), "matmul: rows of {cols} have no whole blocks");
        let blocks = cols / BLOCK;
        let rows = self.acts.by_token.room(tokens, cols);
        // Blocks `b .. b + n` of token t.
        let quantize = |t: usize, b: usize, n: usize| {
            let (x, at) = (x.row(t)[b * BLOCK..][..n * BLOCK].as_ptr(), t * blocks + b);
            call!(kernels, quantize(x, n * BLOCK, rows.q.at(at * BLOCK), rows.d.at(at), rows.offset.at(at)));
        };
        let mut read = rows; // by kernels for few tokens
        if few && tokens > 1 {
            let interleaved = self.acts.interleaved.room(tokens, cols);
            read = interleaved;
            let size = part(blocks, self.pool.threads(), 4);
            self.pool.run(blocks.div_ceil(size), |task, _| {
                let b = task * size;
                let n = size.min(blocks - b);
                for t in 0..tokens {
                    quantize(t, b, n);
                    let (from, to) = (t * blocks + b, b * tokens + t);
                    let (q, d, offset) = (rows.q.at(from * BLOCK), rows.d.at(from), rows.offset.at(from));
                    let to_q = interleaved.q.at(b * BLOCK * tokens + 4 * t);
                    // SAFETY: both have `tokens * blocks` blocks, and no other task has these.
                    unsafe {
                        hk::hk_interleave(
                            q,
                            d,
                            offset,
                            n,
                            tokens,
                            to_q,
                            interleaved.d.at(to),
                            interleaved.offset.at(to),
                        );
                    }
                }
            });
        } else {
            self.each_token(tokens, |t| quantize(t, 0, blocks));
        }
        [rows, read].map(|b| hk::hk_act {
            x: x.data.as_ptr(),
            stride: x.stride,
            q: b.q.0,
            d: b.d.0,
            offset: b.offset.0,
        })
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
        let most = if w.iter().all(|w| w.packed()) {
            FEW_TOKENS
        } else {
            usize::from(w.iter().all(|w| w.packed() || !w.quantized()))
        };
        let gemv = self.kernels.table().gemv.filter(|_| tokens <= most);
        let mut acts = if w.iter().any(Weight::quantized) {
            self.quantize_activations(x, gemv.is_some())
        } else {
            let none = (std::ptr::null(), std::ptr::null(), std::ptr::null());
            let x = hk::hk_act { x: x.data.as_ptr(), stride: x.stride, q: none.0, d: none.1, offset: none.2 };
            [x; 2]
        };
        let [by_token, few] = acts.each_mut().map(|act| Shared(&raw mut *act));
        let out = out.map(|out| (Shared(out.data.as_mut_ptr()), out.stride));
        // Matrices of one type are read together.
        let together = if w.iter().all(|m| m.dtype == w[0].dtype) { N } else { 1 };
        let plan = RowPlan::new(&w, if gemv.is_some() { STREAMS / together } else { 1 }, self.pool.threads());
        let (kernels, distance, accumulate) = (self.kernels, prefetch_distance(tokens), i32::from(accumulate));
        let at = |i: usize, row: usize| (w[i].bytes[row * w[i].row_bytes()..].as_ptr().cast(), out[i].0.at(row));
        self.pool.run(plan.tasks(), |task, _| match (gemv, plan.whole(task)) {
            (Some(gemv), Some((first, n))) => {
                for i in (0..N).step_by(together) {
                    let streams: [_; STREAMS] =
                        std::array::from_fn(|s| at(i + s / plan.runs, first + s % plan.runs * plan.run));
                    let (bytes, y, stride) = (streams.map(|s| s.0), streams.map(|s| s.1), out[i].1);
                    let (bytes, y) = (bytes.as_ptr(), y.as_ptr());
                    // SAFETY: as with `call!`; all rows of all runs are the matrices', in whole groups of eight.
                    unsafe { gemv(w[i].dtype, bytes, n, cols, distance, few.at(0), tokens, y, stride, accumulate) };
                }
                (0..plan.runs).for_each(|s| then(first + s * plan.run, n));
            }
            (_, whole) => {
                let left = plan.runs * plan.run;
                let (first, n) = whole.unwrap_or((left, rows - left));
                for (i, (w, (_, stride))) in w.iter().zip(&out).enumerate() {
                    let (bytes, y) = at(i, first);
                    call!(kernels, matmul(w.dtype, bytes, n, cols, by_token.at(0), tokens, y, *stride, accumulate));
                }
                then(first, n);
            }
        });
    }
}
