//! Attention over the rows of a KV cache and of the chunk that is being read.

use std::ops::Range;

use self::units::{calls, cut};
use super::{Cpu, Shared, call};
use crate::{
    Mat, MatMut,
    bindings::{self as hk, hk_type},
};

mod units;

/// Keys or values of a cache, head after head `[kv_heads, rows, dim]`.
#[derive(Clone, Copy)]
pub enum KvRows<'a> {
    /// Half floats, as bits.
    F16(&'a [u16]),
    /// Floats.
    F32(&'a [f32]),
    /// ggml's Q8_0: blocks of 32 values, 34 bytes each.
    Q8_0(&'a [u8]),
}

/// Values of a block of Q8_0.
pub const Q8_BLOCK: usize = 32;
/// Bytes of a block of Q8_0: a half-float scale and signed bytes.
pub const Q8_BYTES: usize = 34;

impl KvRows<'_> {
    fn len(self) -> usize {
        match self {
            Self::Q8_0(v) => v.len() / Q8_BYTES * Q8_BLOCK,
            Self::F16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    fn dtype(self) -> hk_type {
        match self {
            Self::F16(_) => hk_type::HK_F16,
            Self::F32(_) => hk_type::HK_F32,
            Self::Q8_0(_) => hk_type::HK_Q8_0,
        }
    }

    /// The address of value `i`, which is within bounds and begins a block if there are blocks.
    fn at(self, i: usize) -> *const std::ffi::c_void {
        match self {
            Self::Q8_0(v) => v[i / Q8_BLOCK * Q8_BYTES..].as_ptr().cast(),
            Self::F16(v) => v[i..].as_ptr().cast(),
            Self::F32(v) => v[i..].as_ptr().cast(),
        }
    }
}

/// A run of rows that a token sees: of the cache, or of the chunk that is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// In the chunk (true) or in the cache?
    pub chunk: bool,
    /// The first row.
    pub first: usize,
    /// How many rows; 0: the run is not there.
    pub rows: usize,
}

/// What [`Cpu::attention`] reads.
pub struct Attention<'a> {
    /// Queries `[tokens, heads * key_dim]`.
    pub q: Mat<'a>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Keys and values of the cache.
    pub cache: [KvRows<'a>; 2],
    /// Keys and values of the chunk's own tokens.
    pub chunk: [KvRows<'a>; 2],
    /// Per token, the rows it sees, in order of position: a prefix of the cache, the same for all tokens; the end of
    /// what else the cache holds, in two runs, for later tokens no more of it than for earlier ones; rows of the chunk.
    pub visible: &'a [[Run; 4]],
    /// The position of the chunk's first token. What a token sees is added up tile by tile, and tiles are runs of
    /// positions: so its answer has the same bits in whatever chunk it comes.
    pub position: usize,
}

/// Rows of a tile.
const ROWS: usize = hk::HK_ATTEND_ROWS as usize;
/// Queries of a tile of tokens: as many as the kernel takes at once.
const PREFILL_QUERIES: usize = 40;

/// The rows that some tokens see between them, as one sequence.
struct Sequence {
    /// A prefix that all see, then the rest.
    runs: [Run; 4],
    /// Per token: where in the sequence the rest that it sees begins and ends.
    first: Vec<usize>,
    end: Vec<usize>,
    /// Where in its tile the rest begins.
    tile_offset: usize,
}

impl Sequence {
    fn new(visible: &[[Run; 4]], position: usize) -> Self {
        let [prefix, old, new, _] = visible[0];
        let cached = old.rows + new.rows;
        let own = |token: &[Run; 4]| token[3].first..token[3].first + token[3].rows;
        let start = visible.iter().map(|v| own(v).start).min().unwrap_or(0);
        let stop = visible.iter().map(|v| own(v).end).max().unwrap_or(0);
        let (mut first, mut end) = (Vec::with_capacity(visible.len()), Vec::with_capacity(visible.len()));
        for token in visible {
            let seen = token[1].rows + token[2].rows;
            assert!(token[0] == prefix && seen <= cached && token[3].rows > 0, "attention: rows are out of order");
            let chunk = prefix.rows + cached; // where the chunk's rows begin
            assert!(seen == 0 || own(token).start == start, "attention: rows between those of a token are missing");
            first.push(if seen > 0 { chunk - seen } else { chunk + own(token).start - start });
            end.push(chunk + own(token).end - start);
        }
        let tile_offset = (position + start).checked_sub(cached).expect("attention: rows from before the text") % ROWS;
        Self {
            runs: [prefix, old, new, Run { chunk: true, first: start, rows: stop - start }],
            first,
            end,
            tile_offset,
        }
    }

    /// Where tiles begin, and the end.
    fn tiles(&self) -> Vec<usize> {
        let [prefix, rows] = [self.runs[0].rows, self.rows()];
        let rest = (prefix..prefix + 1).chain((prefix + ROWS - self.tile_offset..rows).step_by(ROWS));
        (0..prefix).step_by(ROWS).chain(rest).chain([rows]).collect()
    }

    fn rows(&self) -> usize {
        self.runs.iter().map(|r| r.rows).sum()
    }
}

impl Cpu {
    /// Softmax attention of every token over the rows it sees; out `[tokens, heads * value_dim]`.
    ///
    /// # Panics
    /// If the shapes do not fit together, a token sees rows that the first token of the call does not bound (see
    /// [`Attention::visible`]), or more rows than there are positions before it.
    pub fn attention(&mut self, a: &Attention<'_>, out: MatMut<'_>) {
        let group = a.heads / a.kv_heads;
        assert!(group * a.kv_heads == a.heads, "attention: heads do not form groups");
        assert!(a.q.cols == a.heads * a.key_dim && out.cols == a.heads * a.value_dim, "attention: widths differ");
        assert!(a.q.rows == out.rows && a.visible.len() == out.rows, "attention: tokens differ");
        let dtype = a.cache[0].dtype();
        // Rows that the memory of a run has room for: of keys, of values.
        let rows = |run: Run| {
            let [k, v] = if run.chunk { a.chunk } else { a.cache };
            [k.len() / (a.kv_heads * a.key_dim), v.len() / (a.kv_heads * a.value_dim)]
        };
        assert!(a.cache.iter().chain(&a.chunk).all(|r| r.dtype() == dtype), "attention: types differ");
        let whole = a.key_dim.is_multiple_of(Q8_BLOCK) && a.value_dim.is_multiple_of(Q8_BLOCK);
        assert!(dtype != hk_type::HK_Q8_0 || whole, "attention: a head has no whole blocks");
        for run in a.visible.iter().flatten() {
            let end = run.first + run.rows;
            assert!(rows(*run).into_iter().all(|rows| end <= rows), "attention: a run ends at row {end}");
        }

        let (kernels, heads) = (self.kernels, a.heads);
        let (y, stride) = (Shared(out.data.as_mut_ptr()), out.stride);
        let scale = 1.0 / (a.key_dim as f32).sqrt();
        let keys_t = hk::HK_ATTEND_SCRATCH as usize * a.key_dim;
        // The call on tokens `t..` of a sequence, kv heads `h..`, with `scratch`; the caller says where parts go.
        let call = |s: &Sequence, t: usize, h: Range<usize>, scratch: *mut f32| {
            let runs = s.runs.map(|run| {
                let [k, v] = if run.chunk { a.chunk } else { a.cache };
                let [k_rows, v_rows] = rows(run);
                let (k_head_stride, v_head_stride) = (k_rows * a.key_dim, v_rows * a.value_dim);
                let at = |rows: KvRows<'_>, i| if run.rows > 0 { rows.at(i) } else { std::ptr::null() };
                hk::hk_rows {
                    k: at(k, h.start * k_head_stride + run.first * a.key_dim),
                    v: at(v, h.start * v_head_stride + run.first * a.value_dim),
                    rows: run.rows,
                    k_head_stride,
                    v_head_stride,
                }
            });
            let args = hk::hk_attend {
                q: a.q.row(t)[h.start * group * a.key_dim..].as_ptr(),
                q_stride: a.q.stride,
                tokens: s.first.len(),
                kv_heads: h.len(),
                group,
                key_dim: a.key_dim,
                value_dim: a.value_dim,
                type_: dtype,
                runs: std::ptr::null(),
                n_runs: runs.len(),
                from: 0,
                to: s.rows(),
                prefetch_end: s.rows(),
                prefetched: 0,
                prefix: s.runs[0].rows,
                tile_offset: s.tile_offset,
                first: s.first.as_ptr(),
                end: s.end.as_ptr(),
                scale,
                scratch,
                max: std::ptr::null_mut(),
                sum: std::ptr::null_mut(),
                out: y.at(t * stride + h.start * group * a.value_dim),
                out_stride: stride,
                tile_stride: 0,
            };
            (args, runs)
        };

        if out.rows == 1 {
            // One token: a task has some neighbouring tiles, each for all heads, so that memory is read at as many places;
            // where threads meet, some heads of a tile.
            let s = &Sequence::new(a.visible, a.position);
            let (tiles, part) = (&s.tiles(), heads * (a.value_dim + 2));
            let cuts = &cut(tiles, a.kv_heads, self.pool.threads());
            let (tasks, parts) = (cuts.len() - 1, tiles.len() - 1);
            let room = keys_t.max(heads * hk::HK_ATTEND_SCORES as usize);
            let n = self.pool.threads() * room;
            self.scores.resize(self.scores.len().max(n + parts * part), 0.0);
            let scratch = Shared(self.scores.as_mut_ptr());
            let own: Vec<_> = (0..self.pool.threads()).map(|thread| self.pool.own(tasks, thread)).collect();
            self.pool.run(tasks, |task, thread| {
                // What the thread takes in a row, and the tiles of it that it has all heads of.
                let mine = if own[thread].contains(&task) { own[thread].clone() } else { task..task + 1 };
                let whole = cuts[mine.start].div_ceil(a.kv_heads)..cuts[mine.end] / a.kv_heads;
                for (tile, h) in calls(cuts[task]..cuts[task + 1], a.kv_heads) {
                    let (mut args, kv) = call(s, 0, h.clone(), scratch.at(thread * room));
                    args.runs = kv.as_ptr();
                    (args.from, args.to) = (tiles[tile.start], tiles[tile.end]);
                    let all = h.len() == a.kv_heads;
                    args.prefetch_end = if all { tiles[whole.end] } else { args.to };
                    args.prefetched = i32::from(all && tile.start > whole.start);
                    args.tile_stride = part;
                    let (first, at) = (h.start * group, n + tile.start * part);
                    args.max = scratch.at(at + first);
                    args.sum = scratch.at(at + heads + first);
                    args.out = scratch.at(at + 2 * heads + first * a.value_dim);
                    call!(kernels, attend(&args));
                }
            });
            self.pool.run(a.kv_heads, |head, _| {
                let h = head * group;
                let (max, sum) = (scratch.at(n + h), scratch.at(n + heads + h));
                let (values, y) = (scratch.at(n + 2 * heads + h * a.value_dim), y.at(h * a.value_dim));
                call!(kernels, combine_partials(max, sum, part, values, part, parts, group, a.value_dim, y));
            });
            return;
        }

        // Many tokens: those of a tile share each row of keys, once it is transposed.
        let tile = (PREFILL_QUERIES / group).max(1);
        let each = keys_t + 2 * tile * group;
        self.scores.resize(self.scores.len().max(self.pool.threads() * each), 0.0);
        let scratch = Shared(self.scores.as_mut_ptr());
        let sequences: Vec<_> = a.visible.chunks(tile).map(|visible| Sequence::new(visible, a.position)).collect();
        // A head's rows stay in the second-level cache from task to task; the last tokens, which see the most, come first.
        let tasks = sequences.len() * a.kv_heads;
        self.pool.run(tasks, |task, thread| {
            let task = tasks - 1 - task;
            let (i, head) = (task % sequences.len(), task / sequences.len());
            let (s, t, scratch) = (&sequences[i], i * tile, scratch.at(thread * each));
            let (mut args, runs) = call(s, t, head..head + 1, scratch);
            args.runs = runs.as_ptr();
            args.max = scratch.wrapping_add(keys_t);
            args.sum = args.max.wrapping_add(tile * group);
            call!(kernels, attend(&args));
            for t in 0..s.first.len() {
                let out = args.out.wrapping_add(t * stride);
                let (max, sum) = (args.max.wrapping_add(t * group), args.sum.wrapping_add(t * group));
                call!(kernels, combine_partials(max, sum, 0, out, 0, 1, group, a.value_dim, out));
            }
        });
    }
}
