//! Attention.

use crate::{Binding, Buffer, Constants, Gpu, View, ops::whole};

/// A span of KV rows visible to a token.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct KvSpan {
    /// The first row.
    pub first: u32,
    /// Number of rows.
    pub rows: u32,
    /// 1: rows of the chunk; 0: of the cache.
    pub chunk: u32,
    /// Padding to the alignment of the shaders.
    pub unused: u32,
}

/// The arguments of [`Gpu::attention`].
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
    /// Keys and values of the chunk.
    pub chunk: [&'a Buffer; 2],
    /// Whether keys and values are half floats instead of floats.
    pub half: bool,
    /// The visible rows of each token.
    pub visible: &'a [[KvSpan; 4]],
    /// Whether every token must be bit-identical to a pass of its own.
    pub decode: bool,
}

/// The arguments of `attend_prefill`, as in `shaders/attention.metal`. Strides are in values.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PrefillArgs {
    tokens: u32,
    q_stride: u32,
    y_stride: u32,
    /// End of the visible cache rows.
    cache_end: u32,
    /// Number of chunk rows.
    chunk_rows: u32,
    scale: f32,
}

/// The arguments of `attend_decode` and `combine_partials`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DecodeArgs {
    tokens: u32,
    q_stride: u32,
    y_stride: u32,
    /// Number of slices per token.
    slices: u32,
    scale: f32,
}

/// Rows per slice, tokens per tile, rows per block: as in `shaders/attention.metal`.
const SLICE: usize = 64;
const TILE: usize = 8;
const BLOCK: usize = 16;
/// Maximum head width of tiles.
const MAX_HEAD_DIM: usize = 128;
/// Maximum simdgroups per tile.
const MAX_SIMDGROUPS: usize = 8;
/// Maximum number of slices whose scales fit into threadgroup memory.
const MAX_SLICES: usize = 8000;
/// Maximum size of the slices' partial results in bytes.
const MAX_PARTIAL_BYTES: usize = 32 << 20;

impl Gpu {
    /// Softmax attention of every token over its visible rows; out `[tokens, heads * value_dim]`.
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
        for span in a.visible.iter().flatten().filter(|s| s.rows > 0) {
            let (chunk, end) = (span.chunk as usize, (span.first + span.rows) as usize);
            assert!(end <= limits[chunk], "attention: a span ends at row {end}");
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
        let tiled = [a.key_dim, a.value_dim].iter().all(|&dim| dim.is_multiple_of(8) && dim <= MAX_HEAD_DIM);
        if tiled && tokens >= TILE && !a.decode {
            self.attend_prefill(a, constants, ends, out);
        } else {
            self.attend_decode(a, constants, out);
        }
    }

    /// `ends`: end of the visible rows in cache and chunk.
    fn attend_prefill(&mut self, a: &Attention<'_>, constants: Constants, ends: [usize; 2], out: View<'_>) {
        let Some(spans) = self.upload(a.visible.as_flattened()) else { return };
        let group = constants.group as usize;
        let simdgroups = group.min(MAX_SIMDGROUPS);
        let args = PrefillArgs {
            tokens: a.q.rows as u32,
            q_stride: a.q.stride as u32,
            y_stride: out.stride as u32,
            cache_end: ends[0] as u32,
            chunk_rows: ends[1] as u32,
            scale: scale(a),
        };
        let [cache_k, cache_v, chunk_k, chunk_v] = kv(a);
        let bindings = [a.q.read(), cache_k, cache_v, chunk_k, chunk_v, spans, out.write()];
        let groups = [a.q.rows.div_ceil(TILE), a.kv_heads, group.div_ceil(simdgroups)].map(|n| n as u32);
        let floats = BLOCK * (a.key_dim + a.value_dim) + simdgroups * TILE * (BLOCK + TILE);
        self.launch("attend_prefill", constants, &bindings, args, groups, 32 * simdgroups as u32, floats);
    }

    fn attend_decode(&mut self, a: &Attention<'_>, constants: Constants, out: View<'_>) {
        let rows = a.visible.iter().map(|spans| spans.iter().map(|s| s.rows as usize).sum()).max().unwrap_or(0);
        let slices: usize = usize::div_ceil(rows, SLICE);
        assert!(slices <= MAX_SLICES, "attention: {rows} rows are too many for this GPU");
        let bytes = 4 * a.heads * slices * (a.value_dim + 2); // per token
        let at_once = (MAX_PARTIAL_BYTES / bytes.max(1)).clamp(1, a.q.rows.max(1));
        let [cache_k, cache_v, chunk_k, chunk_v] = kv(a);
        for first in (0..a.q.rows).step_by(at_once) {
            let tokens = at_once.min(a.q.rows - first);
            let Some(spans) = self.upload(a.visible[first..first + tokens].as_flattened()) else { return };
            let Some(partials) = self.scratch(0, bytes * tokens) else { return };
            let partials = Binding { len: bytes * tokens, ..whole(&partials, true) };
            let q = View { rows: tokens, start: a.q.start + first * a.q.stride, ..a.q };
            let out = View { rows: tokens, start: out.start + first * out.stride, ..out };
            let args = DecodeArgs {
                tokens: tokens as u32,
                q_stride: q.stride as u32,
                y_stride: out.stride as u32,
                slices: slices as u32,
                scale: scale(a),
            };
            let bindings = [&q.read(), &cache_k, &cache_v, &chunk_k, &chunk_v, &spans, &partials].map(Clone::clone);
            let groups = [slices, a.kv_heads, tokens].map(|n| n as u32);
            let floats = (constants.group as usize + 2) * SLICE;
            self.launch("attend_decode", constants, &bindings, args, groups, 128, floats);
            let threads = a.value_dim.next_multiple_of(32).min(128) as u32;
            let groups = [a.heads as u32, tokens as u32, 1];
            let partials = Binding { writable: false, ..partials };
            self.launch("combine_partials", constants, &[partials, out.write()], args, groups, threads, slices + 4);
        }
    }
}

fn scale(a: &Attention<'_>) -> f32 {
    1.0 / (a.key_dim as f32).sqrt()
}

fn kv(a: &Attention<'_>) -> [Binding; 4] {
    [a.cache[0], a.cache[1], a.chunk[0], a.chunk[1]].map(|b| whole(b, false))
}
