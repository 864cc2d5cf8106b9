//! The attention heads' operation.

use crate::{Binding, Buffer, Constants, Gpu, View, ops::whole};

/// A run of rows that a token sees, of the cache or of the chunk's own keys and values.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct KvSpan {
    /// The first row.
    pub first: u32,
    /// How many rows.
    pub rows: u32,
    /// 1: of the chunk, 0: of the cache.
    pub chunk: u32,
    /// For the kernels' alignment.
    pub unused: u32,
}

/// What [`Gpu::attention`] reads.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Queries `[tokens, heads * key_dim]`.
    pub q: View<'a>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Keys and values of the cache `[rows, kv_heads, dim]`.
    pub cache: [&'a Buffer; 2],
    /// Keys and values of the chunk's own tokens.
    pub chunk: [&'a Buffer; 2],
    /// Are keys and values half floats?
    pub half: bool,
    /// Per token, the rows it sees.
    pub visible: &'a [[KvSpan; 4]],
    /// Whether every token has the bits that it has alone.
    pub decode: bool,
}

/// Rows of a slice, tokens of a tile, rows of a block: as in `shaders/attention.metal`.
const SLICE: usize = 64;
const TILE: usize = 8;
const BLOCK: usize = 16;
/// Widths of heads that tiles can have at most.
const MOST: usize = 128;
/// Simdgroups of a tile at most.
const MOST_SIMDS: usize = 8;
/// Slices whose scales fit threadgroup memory.
const MOST_SLICES: usize = 8000;
/// Bytes that the slices' results may take.
const MOST_PARTS: usize = 32 << 20;

impl Gpu {
    /// Softmax attention of every token over the rows it sees; out `[tokens, heads * value_dim]`.
    pub fn attention(&mut self, a: &Attention<'_>, out: View<'_>) {
        let (tokens, group) = (a.q.rows, a.heads / a.kv_heads);
        assert!(group * a.kv_heads == a.heads, "attention: heads do not form groups");
        assert!(a.q.cols == a.heads * a.key_dim && out.cols == a.heads * a.value_dim, "attention: widths differ");
        assert!(out.rows == tokens && a.visible.len() == tokens, "attention: tokens differ");
        let size = if a.half { 2 } else { 4 };
        let rows = |buffers: [&Buffer; 2]| {
            let [k, v] = [(buffers[0], a.key_dim), (buffers[1], a.value_dim)];
            [k, v].map(|(b, dim)| b.len() / (size * a.kv_heads * dim)).into_iter().min().unwrap_or(0)
        };
        let limits = [rows(a.cache), rows(a.chunk)];
        let mut ends = [0; 2];
        for run in a.visible.iter().flatten().filter(|r| r.rows > 0) {
            let (chunk, end) = (run.chunk as usize, (run.first + run.rows) as usize);
            assert!(end <= limits[chunk], "attention: a run ends at row {end}");
            ends[chunk] = end.max(ends[chunk]);
        }
        let aligned = a.q.aligned() && a.key_dim.is_multiple_of(4) && a.value_dim.is_multiple_of(4);
        let constants = Constants {
            aligned: u32::from(aligned),
            cache_half: u32::from(a.half),
            key_dim: a.key_dim as u32,
            value_dim: a.value_dim as u32,
            group: group as u32,
            kv_heads: a.kv_heads as u32,
            ..Constants::default()
        };
        let tiled = [a.key_dim, a.value_dim].iter().all(|&dim| dim.is_multiple_of(8) && dim <= MOST);
        if tiled && tokens >= TILE && !a.decode {
            self.attend_in_tiles(a, constants, ends, out);
        } else {
            self.attend_in_slices(a, constants, out);
        }
    }

    fn attend_in_tiles(&mut self, a: &Attention<'_>, constants: Constants, ends: [usize; 2], out: View<'_>) {
        let Some(runs) = self.upload(a.visible.as_flattened()) else { return };
        let group = constants.group as usize;
        let simds = group.min(MOST_SIMDS);
        let args = [a.q.rows, a.q.stride, out.stride, ends[0], ends[1]].map(|n| n as u32);
        let args = [args[0], args[1], args[2], args[3], args[4], scale(a).to_bits()];
        let [cache_k, cache_v, chunk_k, chunk_v] = kv(a);
        let bindings = [a.q.read(), cache_k, cache_v, chunk_k, chunk_v, runs, out.write()];
        let groups = [a.q.rows.div_ceil(TILE), a.kv_heads, group.div_ceil(simds)].map(|n| n as u32);
        let floats = BLOCK * (a.key_dim + a.value_dim) + simds * TILE * (BLOCK + TILE);
        self.launch("attend_tile", constants, &bindings, args, groups, 32 * simds as u32, floats);
    }

    fn attend_in_slices(&mut self, a: &Attention<'_>, constants: Constants, out: View<'_>) {
        let most = a.visible.iter().map(|runs| runs.iter().map(|r| r.rows as usize).sum()).max().unwrap_or(0);
        let slices: usize = usize::div_ceil(most, SLICE);
        assert!(slices <= MOST_SLICES, "attention: {most} rows are too many for this GPU");
        let bytes = 4 * a.heads * slices * (a.value_dim + 2); // of a token
        let at_once = (MOST_PARTS / bytes.max(1)).clamp(1, a.q.rows.max(1));
        let [cache_k, cache_v, chunk_k, chunk_v] = kv(a);
        for first in (0..a.q.rows).step_by(at_once) {
            let tokens = at_once.min(a.q.rows - first);
            let Some(runs) = self.upload(a.visible[first..first + tokens].as_flattened()) else { return };
            let Some(parts) = self.scratch(0, bytes * tokens) else { return };
            let parts = Binding { len: bytes * tokens, ..whole(&parts, true) };
            let q = View { rows: tokens, start: a.q.start + first * a.q.stride, ..a.q };
            let out = View { rows: tokens, start: out.start + first * out.stride, ..out };
            let args = [tokens, q.stride, out.stride, slices].map(|n| n as u32);
            let args = [args[0], args[1], args[2], args[3], scale(a).to_bits()];
            let bindings = [&q.read(), &cache_k, &cache_v, &chunk_k, &chunk_v, &runs, &parts].map(Clone::clone);
            let groups = [slices, a.kv_heads, tokens].map(|n| n as u32);
            let floats = (constants.group as usize + 2) * SLICE;
            self.launch("attend_slice", constants, &bindings, args, groups, 128, floats);
            let threads = a.value_dim.next_multiple_of(32).min(128) as u32;
            let groups = [a.heads as u32, tokens as u32, 1];
            let parts = Binding { writable: false, ..parts };
            self.launch("attend_join", constants, &[parts, out.write()], args, groups, threads, slices + 4);
        }
    }
}

fn scale(a: &Attention<'_>) -> f32 {
    1.0 / (a.key_dim as f32).sqrt()
}

fn kv(a: &Attention<'_>) -> [Binding; 4] {
    [a.cache[0], a.cache[1], a.chunk[0], a.chunk[1]].map(|b| whole(b, false))
}
