//! Attention over the rows of a KV cache and of the chunk that is being read.
//!
//! What a token sees is one sequence of rows, cut into tiles of [`TILE_ROWS`] positions of the text (the prefix, the meta
//! tokens, into tiles of its own), so that a tile's partial result does not depend on the chunk that it is computed in:
//!
//! ```text
//! spans   | prefix        | older rows of the ring | newer rows | the chunk's own  |
//! tiles   | 128   |  0 .. | ..128 |      128       |      128      |     128    | ..|
//! tokens          t sees  |       first[t] ├───────────────────────┤ end[t]        |
//! ```
//!
//! [`prefill`] gives a task some tokens and one KV head, and walks over all tiles with an online softmax (FlashAttention,
//! arXiv 2205.14135). [`decode`] has one token, and splits its tiles over the threads (split-KV, as in flash-decoding); the
//! partial results are then combined.

use super::{Cpu, Shared, call};
use crate::{
    MatMut, MatRef,
    bindings::{self as hk, hk_type},
};
use sequence::Sequence;

mod decode;
mod prefill;
mod sequence;
mod split;

/// Number of rows in a tile.
const TILE_ROWS: usize = hk::HK_TILE_ROWS as usize;

/// Keys or values of a cache by head `[kv_heads, rows, dim]`.
#[derive(Clone, Copy)]
pub enum KvRows<'a> {
    /// Half floats, as raw bits.
    F16(&'a [u16]),
    /// Floats.
    F32(&'a [f32]),
    /// ggml's Q8_0: blocks of 32 values, 34 bytes each.
    Q8_0(&'a [u8]),
}

/// Number of values in a Q8_0 block.
pub const Q8_BLOCK: usize = 32;
/// Size of a Q8_0 block in bytes: a half-float scale and signed bytes.
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

    /// Returns the address of value `i`, which must be in bounds, and the first one of a block if there are blocks.
    fn at(self, i: usize) -> *const std::ffi::c_void {
        match self {
            Self::Q8_0(v) => v[i / Q8_BLOCK * Q8_BYTES..].as_ptr().cast(),
            Self::F16(v) => v[i..].as_ptr().cast(),
            Self::F32(v) => v[i..].as_ptr().cast(),
        }
    }
}

/// A span of KV rows visible to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvSpan {
    /// Whether the rows belong to the chunk instead of the cache.
    pub chunk: bool,
    /// The first row.
    pub first: usize,
    /// Number of rows; 0: the span is empty.
    pub rows: usize,
}

/// The arguments of [`Cpu::attention`].
pub struct Attention<'a> {
    /// Queries `[tokens, heads * key_dim]`.
    pub q: MatRef<'a>,
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
    /// Keys and values of the chunk.
    pub chunk: [KvRows<'a>; 2],
    /// The visible rows of each token, in order of position: a prefix of the cache that is the same for all tokens; the
    /// end of the rest of the cache in two spans, not longer for later tokens than for earlier ones; rows of the chunk.
    pub visible: &'a [[KvSpan; 4]],
    /// The position of the chunk's first token. Tiles are ranges of positions, so that a token's result has the same
    /// bits in any chunk.
    pub position: usize,
}

impl<'a> Attention<'a> {
    /// Returns the number of query heads per KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.key_dim as f32).sqrt()
    }

    /// Returns the keys and values that a span refers to, and the row capacity of each.
    fn kv(&self, span: KvSpan) -> ([KvRows<'a>; 2], [usize; 2]) {
        let [k, v] = if span.chunk { self.chunk } else { self.cache };
        ([k, v], [k.len() / (self.kv_heads * self.key_dim), v.len() / (self.kv_heads * self.value_dim)])
    }

    fn check(&self, out: &MatMut<'_>) {
        assert!(self.group() * self.kv_heads == self.heads, "attention: heads do not form groups");
        assert!(self.q.cols == self.heads * self.key_dim, "attention: widths differ");
        assert!(out.cols == self.heads * self.value_dim, "attention: widths differ");
        assert!(self.q.rows == out.rows && self.visible.len() == out.rows, "attention: tokens differ");
        let dtype = self.cache[0].dtype();
        assert!(self.cache.iter().chain(&self.chunk).all(|r| r.dtype() == dtype), "attention: types differ");
        let whole = self.key_dim.is_multiple_of(Q8_BLOCK) && self.value_dim.is_multiple_of(Q8_BLOCK);
        assert!(dtype != hk_type::HK_Q8_0 || whole, "attention: a head is not a whole number of blocks");
        for &span in self.visible.iter().flatten() {
            let end = span.first + span.rows;
            assert!(self.kv(span).1.into_iter().all(|rows| end <= rows), "attention: a span ends at row {end}");
        }
    }
}

impl Cpu {
    /// Softmax attention of every token over its visible rows; out `[tokens, heads * value_dim]`.
    ///
    /// # Panics If the shapes do not match, a token sees rows that the first token of the call does not bound (see
    /// [`Attention::visible`]), or more rows than there are positions before it.
    pub fn attention(&mut self, a: &Attention<'_>, out: MatMut<'_>) {
        a.check(&out);
        if out.rows == 1 { self.attend_decode(a, out) } else { self.attend_prefill(a, out) }
    }
}
