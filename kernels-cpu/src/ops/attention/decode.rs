//! Attention of one token, split over the threads by rows.

use std::ops::Range;

use super::{
    Attention, Cpu, MatMut, Sequence, Shared, call, hk,
    split::{calls, cut},
};
use crate::Kernels;

/// Memory layout of a call, in floats: scratch memory of each thread, then the partial results of the tiles.
struct Layout {
    /// Size of a thread's scratch memory.
    scratch: usize,
    /// Size of a tile's partial results: maxima `[heads]`, sums `[heads]`, values `[heads, value_dim]`.
    partial: usize,
    /// Offset of the partial results.
    partials: usize,
}

impl Layout {
    fn new(a: &Attention<'_>, threads: usize) -> Self {
        let keys_t = hk::HK_KEYS_STRIDE as usize * a.key_dim;
        let scratch = keys_t.max(a.heads * hk::HK_SCORES_STRIDE as usize);
        Self { scratch, partial: a.heads * (a.value_dim + 2), partials: threads * scratch }
    }

    /// Returns the offsets of a tile's maxima, sums and values, starting at query head `head`.
    fn tile(&self, a: &Attention<'_>, tile: usize, head: usize) -> [usize; 3] {
        let at = self.partials + tile * self.partial;
        [at + head, at + a.heads + head, at + 2 * a.heads + head * a.value_dim]
    }
}

/// The attention of one token.
struct Decode<'a> {
    kernels: Kernels,
    a: &'a Attention<'a>,
    sequence: Sequence,
    /// Boundaries of the tiles, including the end.
    tiles: Vec<usize>,
    /// Boundaries of the tasks, including the end: see [`cut`].
    cuts: Vec<usize>,
    layout: Layout,
    memory: Shared<f32>,
}

impl Decode<'_> {
    /// Returns the tiles for which the thread that runs `task` has all heads: it runs their tasks one after the other.
    fn whole_tiles(&self, task: usize, own: &Range<usize>) -> Range<usize> {
        let tasks = if own.contains(&task) { own.clone() } else { task..task + 1 };
        self.cuts[tasks.start].div_ceil(self.a.kv_heads)..self.cuts[tasks.end] / self.a.kv_heads
    }

    /// Computes the partial results of a task. `own`: the tasks of `thread`.
    fn run(&self, task: usize, thread: usize, own: &Range<usize>) {
        let (a, group, whole) = (self.a, self.a.group(), self.whole_tiles(task, own));
        for (tiles, heads) in calls(self.cuts[task]..self.cuts[task + 1], a.kv_heads) {
            let (from, to) = (self.tiles[tiles.start], self.tiles[tiles.end]);
            let (all, first) = (heads.len() == a.kv_heads, heads.start * group);
            let [max, sum, out] = self.layout.tile(a, tiles.start, first).map(|at| self.memory.at(at));
            let spans = self.sequence.spans(a, &heads);
            let args = hk::hk_attend_decode {
                kv: self.sequence.kernel_args(a, &heads, &spans),
                group,
                q: a.q.row(0)[first * a.key_dim..].as_ptr(),
                from,
                to,
                prefetch_end: if all { self.tiles[whole.end] } else { to },
                prefetched: i32::from(all && tiles.start > whole.start),
                scale: a.scale(),
                scratch: self.memory.at(thread * self.layout.scratch),
                max,
                sum,
                out,
                tile_stride: self.layout.partial,
            };
            call!(self.kernels, attend_decode(&args));
        }
    }

    /// Combines the partial results of a KV head's queries.
    fn combine(&self, kv_head: usize, y: Shared<f32>) {
        let (a, group, stride) = (self.a, self.a.group(), self.layout.partial);
        let [max, sum, values] = self.layout.tile(a, 0, kv_head * group).map(|at| self.memory.at(at));
        let (n, y) = (self.tiles.len() - 1, y.at(kv_head * group * a.value_dim));
        call!(self.kernels, combine_partials(max, sum, stride, values, stride, n, group, a.value_dim, y));
    }
}

impl Cpu {
    /// A task has some neighboring tiles with all KV heads, so that several streams are read; at the boundary between
    /// two threads, it has some heads of a tile.
    pub(super) fn attend_decode(&mut self, a: &Attention<'_>, out: MatMut<'_>) {
        let threads = self.pool.threads();
        let sequence = Sequence::new(a.visible, a.position);
        let tiles = sequence.tiles();
        let cuts = cut(&tiles, a.kv_heads, threads);
        let layout = Layout::new(a, threads);
        let floats = layout.partials + (tiles.len() - 1) * layout.partial;
        self.scores.resize(self.scores.len().max(floats), 0.0);
        let memory = Shared(self.scores.as_mut_ptr());
        let tasks = cuts.len() - 1;
        let own: Vec<_> = (0..threads).map(|thread| self.pool.own(tasks, thread)).collect();
        let decode = Decode { kernels: self.kernels, a, sequence, tiles, cuts, layout, memory };
        self.pool.run(tasks, |task, thread| decode.run(task, thread, &own[thread]));
        let y = Shared(out.data.as_mut_ptr());
        self.pool.run(a.kv_heads, |head, _| decode.combine(head, y));
    }
}
