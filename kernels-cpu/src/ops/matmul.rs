//! Products with weight matrices.

use std::sync::LazyLock;

use super::{Cpu, Shared, call, part};
pub use crate::bindings::hk_type as WeightType;
use crate::{
    Kernels, MatMut, MatRef, TypeFacts,
    bindings::{self as hk, hk_type},
};

/// Values in a block of quantized weights and activations.
const BLOCK: usize = hk::HK_BLOCK as usize;
/// Ranges of rows that `gemv` reads concurrently.
pub(super) const STREAMS: usize = hk::HK_STREAMS as usize;
/// Maximum number of tokens of `gemv`.
const FEW_TOKENS: usize = hk::HK_FEW_TOKENS as usize;

/// A weight matrix `[rows, cols]`, row-major.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// The storage type.
    pub dtype: WeightType,
    /// Number of rows, the outputs of the product.
    pub rows: usize,
    /// Number of columns, the inputs of the product.
    pub cols: usize,
    /// The packed rows.
    pub bytes: &'a [u8],
}

impl Weight<'_> {
    /// Returns the bytes per row; for a packed matrix, an eighth of a group.
    fn row_bytes(&self) -> usize {
        match TypeFacts::of(self.dtype) {
            Some(facts) => facts.block_bytes() * (self.cols / BLOCK),
            None => self.cols * if self.dtype == hk_type::HK_F32 { 4 } else { 2 },
        }
    }

    fn quantized(&self) -> bool {
        !matches!(self.dtype, hk_type::HK_F32 | hk_type::HK_F16 | hk_type::HK_BF16)
    }

    /// Whether eight rows are interleaved.
    fn packed(&self) -> bool {
        self.dtype as u32 & hk::HK_X8 != 0
    }

    /// Returns the number of stored rows: packed matrices have whole groups of eight.
    fn stored_rows(&self) -> usize {
        if self.packed() { self.rows.next_multiple_of(8) } else { self.rows }
    }
}

/// Bytes that kernels may read beyond the values of interleaved tokens.
const SLACK: usize = 12;

/// Activations as int8 blocks: values, scales and offsets.
#[derive(Default)]
struct Blocks {
    q: Vec<i8>,
    d: Vec<f32>,
    offset: Vec<i32>,
}

impl Blocks {
    /// Returns space for `tokens` rows of `cols` values, with arbitrary contents.
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

/// Pointers to [`Blocks`]; tasks write disjoint parts.
#[derive(Clone, Copy)]
struct BlocksMut {
    q: Shared<i8>,
    d: Shared<f32>,
    offset: Shared<i32>,
}

/// Quantized activations of a product.
#[derive(Default)]
pub(super) struct QuantizedActs {
    /// Row-major.
    by_token: Blocks,
    /// Interleaved, for few tokens.
    interleaved: Blocks,
}

/// Returns the prefetch distance in bytes of each stream of `gemv`. On AMD (Zen 3), hardware prefetch follows several streams
/// into L2, and a longer distance slows it down when one token leaves little arithmetic to hide it; on Intel (Granite Rapids)
/// hardware prefetch alone does not saturate memory.
fn prefetch_distance(tokens: usize) -> usize {
    static AMD: LazyLock<bool> = LazyLock::new(is_amd); // on virtual machines every CPUID traps to the host
    match (*AMD, tokens) {
        (true, 1) => 320,
        (true, _) => 1024,
        (false, _) => 2048,
    }
}

fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let id = std::arch::x86_64::__cpuid(0);
        return [id.ebx, id.edx, id.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
    }
    #[allow(unreachable_code)]
    false
}

/// How the rows of matrices of one shape are split into tasks.
///
/// For few tokens, several ranges of rows are read concurrently, which is faster: a task has some rows of each of
/// `ranges` ranges of equal length in every matrix, and the remaining rows are one more task.
struct RowPlan {
    rows: usize,
    /// Ranges of each matrix.
    ranges: usize,
    /// Rows per range.
    range_rows: usize,
    /// Rows per range and task.
    task_rows: usize,
}

impl RowPlan {
    /// Plans products of `w`, each split into `ranges`.
    fn new(w: &[Weight<'_>], ranges: usize, threads: usize) -> Self {
        let rows = w[0].rows;
        let range_rows = if ranges > 1 { rows / (ranges * 8) * 8 } else { rows };
        // Enough tasks to even out threads that the system slows down, each at least a microsecond of reading.
        let (unit, tasks) = if ranges > 1 { (8, 128) } else { (16, 32 * w.len()) };
        let row_bytes: usize = w.iter().map(|w| w.row_bytes() * ranges).sum();
        let smallest = (16 * 1024 / row_bytes.max(1)).max(1).next_multiple_of(unit);
        Self { rows, ranges, range_rows, task_rows: part(range_rows, tasks * threads, unit).max(smallest) }
    }

    /// Returns the number of tasks with rows of all ranges.
    fn range_tasks(&self) -> usize {
        self.range_rows.div_ceil(self.task_rows)
    }

    /// Returns the first row after the ranges.
    fn rest(&self) -> usize {
        self.ranges * self.range_rows
    }

    fn tasks(&self) -> usize {
        self.range_tasks() + usize::from(self.rows > self.rest())
    }

    /// Returns the first row of a task in the first range and its number of rows per range; `None` for the task with
    /// the remaining rows.
    fn range_task(&self, task: usize) -> Option<(usize, usize)> {
        let first = task * self.task_rows;
        (task < self.range_tasks()).then(|| (first, self.task_rows.min(self.range_rows - first)))
    }
}

type Gemv = unsafe extern "C" fn(
    hk_type,
    *const *const std::ffi::c_void,
    usize,
    usize,
    usize,
    *const hk::hk_act,
    usize,
    *const *mut f32,
    usize,
    i32,
);

/// Products of one x with several matrices of one shape.
struct Products<'a, const N: usize> {
    kernels: Kernels,
    w: [Weight<'a>; N],
    /// The output of each matrix, and the stride of its rows.
    out: [(Shared<f32>, usize); N],
    /// x by token, and interleaved for `gemv`.
    by_token: Shared<hk::hk_act>,
    few: Shared<hk::hk_act>,
    tokens: usize,
    accumulate: i32,
    plan: RowPlan,
}

impl<const N: usize> Products<'_, N> {
    /// Returns the address of a row of matrix `i`, and of its output for the first token.
    fn row(&self, i: usize, row: usize) -> (*const std::ffi::c_void, *mut f32) {
        (self.w[i].bytes[row * self.w[i].row_bytes()..].as_ptr().cast(), self.out[i].0.at(row))
    }

    /// Processes `rows` rows of each range starting at `first`; `together` matrices share the streams of a call.
    fn gemv(&self, gemv: Gemv, together: usize, first: usize, rows: usize) {
        let (plan, cols, distance) = (&self.plan, self.w[0].cols, prefetch_distance(self.tokens));
        for i in (0..N).step_by(together) {
            let streams: [_; STREAMS] =
                std::array::from_fn(|s| self.row(i + s / plan.ranges, first + s % plan.ranges * plan.range_rows));
            let (w, y, stride) = (streams.map(|s| s.0), streams.map(|s| s.1), self.out[i].1);
            let (w, y, act) = (w.as_ptr(), y.as_ptr(), self.few.at(0));
            // SAFETY: as for `call!`; all ranges are inside the matrices, in whole groups of eight.
            unsafe { gemv(self.w[i].dtype, w, rows, cols, distance, act, self.tokens, y, stride, self.accumulate) };
        }
    }

    fn matmul(&self, first: usize, rows: usize) {
        for (i, w) in self.w.iter().enumerate() {
            let ((bytes, y), stride, act) = (self.row(i, first), self.out[i].1, self.by_token.at(0));
            call!(self.kernels, matmul(w.dtype, bytes, rows, w.cols, act, self.tokens, y, stride, self.accumulate));
        }
    }
}

/// Checks the shapes.
fn check<const N: usize>(w: &[Weight<'_>; N], x: MatRef<'_>, out: &[MatMut<'_>; N]) {
    for (m, out) in w.iter().zip(out) {
        assert!(x.cols == m.cols && out.cols == m.rows && out.rows == x.rows, "matmul: shapes differ");
        assert!((m.rows, m.cols) == (w[0].rows, w[0].cols), "matmul: matrices differ");
        let bytes = m.stored_rows() * m.row_bytes();
        assert!(m.bytes.len() == bytes, "matmul: {} bytes for {} rows", m.bytes.len(), m.rows);
    }
}

/// Returns the maximum number of tokens for `gemv` with `w`.
fn most_tokens(w: &[Weight<'_>]) -> usize {
    if w.iter().all(|w| w.packed()) { FEW_TOKENS } else { usize::from(w.iter().all(|w| w.packed() || !w.quantized())) }
}

impl Cpu {
    /// `out[t, r] = or += W[r] · x[t]`; x `[tokens, cols]`, out `[tokens, rows]`. For quantized weights, activations
    /// are rounded to int8 blocks of 32.
    ///
    /// # Panics If the shapes do not match.
    pub fn matmul(&mut self, w: Weight<'_>, x: MatRef<'_>, out: MatMut<'_>, accumulate: bool) {
        self.products([w], x, [out], accumulate, |_, _| ());
    }

    /// out = silu(gate) ⊙ (U·x) with gate = G·x: bit-identical to two calls of [`Cpu::matmul`] and [`Cpu::silu_mul`].
    /// `gate` and `out` are `[tokens, rows]`.
    ///
    /// # Panics If the shapes do not match.
    pub fn gated_matmul(&mut self, [g, u]: [Weight<'_>; 2], x: MatRef<'_>, gate: MatMut<'_>, out: MatMut<'_>) {
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

    /// Rounds x to int8 blocks: by token for `matmul` and, if `few`, interleaved for `gemv`.
    fn quantize_activations(&mut self, x: MatRef<'_>, few: bool) -> [hk::hk_act; 2] {
        let (tokens, cols, kernels) = (x.rows, x.cols, self.kernels);
        assert!(cols.is_multiple_of(BLOCK), "matmul: rows of {cols} have no whole blocks");
        let blocks = cols / BLOCK;
        let rows = self.acts.by_token.room(tokens, cols);
        // Quantizes blocks `b .. b + n` of token t.
        let quantize = |t: usize, b: usize, n: usize| {
            let (x, at) = (x.row(t)[b * BLOCK..][..n * BLOCK].as_ptr(), t * blocks + b);
            call!(kernels, quantize(x, n * BLOCK, rows.q.at(at * BLOCK), rows.d.at(at), rows.offset.at(at)));
        };
        let mut read = rows; // for kernels for few tokens
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

    /// Computes products of one x with matrices of one shape, task by task, and calls `then(first, rows)` for the rows
    /// of each task.
    fn products<const N: usize>(
        &mut self,
        w: [Weight<'_>; N],
        x: MatRef<'_>,
        out: [MatMut<'_>; N],
        accumulate: bool,
        then: impl Fn(usize, usize) + Sync,
    ) {
        check(&w, x, &out);
        let gemv = self.kernels.table().gemv.filter(|_| x.rows <= most_tokens(&w));
        let mut acts = if w.iter().any(Weight::quantized) {
            self.quantize_activations(x, gemv.is_some())
        } else {
            let none = (std::ptr::null(), std::ptr::null(), std::ptr::null());
            [hk::hk_act { x: x.data.as_ptr(), stride: x.stride, q: none.0, d: none.1, offset: none.2 }; 2]
        };
        let [by_token, few] = acts.each_mut().map(|act| Shared(&raw mut *act));
        // Matrices of one type are processed together.
        let together = if w.iter().all(|m| m.dtype == w[0].dtype) { N } else { 1 };
        let ranges = if gemv.is_some() { STREAMS / together } else { 1 };
        let products = Products {
            kernels: self.kernels,
            plan: RowPlan::new(&w, ranges, self.pool.threads()),
            w,
            out: out.map(|out| (Shared(out.data.as_mut_ptr()), out.stride)),
            by_token,
            few,
            tokens: x.rows,
            accumulate: i32::from(accumulate),
        };
        let plan = &products.plan;
        self.pool.run(plan.tasks(), |task, _| match (gemv, plan.range_task(task)) {
            (Some(gemv), Some((first, rows))) => {
                products.gemv(gemv, together, first, rows);
                (0..plan.ranges).for_each(|range| then(first + range * plan.range_rows, rows));
            }
            (_, task) => {
                let (first, rows) = task.unwrap_or((plan.rest(), plan.rows - plan.rest()));
                products.matmul(first, rows);
                then(first, rows);
            }
        });
    }
}
