//! Room for the activations of a chunk, used again by every layer.

use std::ops::Range;

use crate::{
    Result,
    backend::{Angles, Buffer, MatMut, MatRef, Memory},
    format::CacheType,
    model::Config,
};

/// A matrix of activations `[tokens, width]`.
pub(super) struct Acts {
    pub(super) buffer: Buffer,
    width: usize,
}

impl Acts {
    pub(super) fn cols(&self, tokens: usize, cols: Range<usize>) -> MatRef<'_> {
        MatRef { buffer: &self.buffer, rows: tokens, start: cols.start, cols: cols.len(), stride: self.width }
    }

    pub(super) fn cols_mut(&mut self, tokens: usize, cols: Range<usize>) -> MatMut<'_> {
        MatMut { buffer: &mut self.buffer, rows: tokens, start: cols.start, cols: cols.len(), stride: self.width }
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> MatRef<'_> {
        MatRef { start: rows.start * self.width, ..self.all(rows.len()) }
    }

    pub(super) fn all(&self, tokens: usize) -> MatRef<'_> {
        self.cols(tokens, 0..self.width)
    }

    pub(super) fn all_mut(&mut self, tokens: usize) -> MatMut<'_> {
        self.cols_mut(tokens, 0..self.width)
    }

    /// Room for a matrix of another `width`, in place of the old one.
    pub(super) fn resized(&mut self, tokens: usize, width: usize) -> MatMut<'_> {
        self.width = width;
        self.all_mut(tokens)
    }
}

/// Room for the activations of a chunk. A layer uses some of it twice, which saves memory; each field tells for what.
pub struct Scratch {
    chunk: usize,
    /// The residual stream `[tokens, hidden]`.
    pub(super) x: Acts,
    /// What the next product reads: x normed, the convolution's output, the average of the heads.
    pub(super) input: Acts,
    /// in_proj's output `[q|k|v|u|gate]` or `[q|u|gate]`; then the feed-forward's gate.
    pub(super) mixed: Acts,
    /// The attention heads' output before its norm `[tokens, inner]`.
    pub(super) attention: Acts,
    /// x_proj's output `[dt|B|C]`.
    pub(super) dt_b_c: Acts,
    /// The Mamba heads' output before its norm `[tokens, inner]`.
    pub(super) mamba: Acts,
    /// Δ of the Mamba heads; then the feed-forward's hidden layer.
    pub(super) up: Acts,
    pub(super) logits: Acts,
    logits_rows: usize,
    /// Keys and values of the chunk in each producer; they enter the cache when the pass is over.
    pub(super) kv: Vec<Option<[Buffer; 2]>>,
    pub(super) cache: CacheType,
    pub(super) angles: Angles,
}

/// What a [`Scratch`] has room for.
pub struct Room<'a> {
    /// The model's sizes.
    pub config: &'a Config,
    /// Tokens of the longest chunk.
    pub chunk: usize,
    /// How keys and values are stored.
    pub cache: CacheType,
}

impl Scratch {
    /// Allocates room for chunks; none for logits yet.
    pub fn new(memory: &dyn Memory, room: Room<'_>) -> Result<Self> {
        let Room { config: c, chunk, cache } = room;
        let acts = |width: usize| Ok(Acts { buffer: memory.zeros(chunk * width)?, width });
        let (k, v) = c.kv_widths();
        let rows = |dim| memory.kv_rows(cache, chunk, c.kv_heads, dim);
        let kv = |layer| c.is_producer(layer).then(|| Ok([rows(c.key_dim)?, rows(c.value_dim)?])).transpose();
        Ok(Self {
            chunk,
            x: acts(c.hidden)?,
            input: acts(c.hidden.max(c.inner))?,
            mixed: acts((c.hidden + k + v + 2 * c.inner).max(c.ffn))?,
            attention: acts(c.inner)?,
            dt_b_c: acts(c.dt_rank + 2 * c.state)?,
            mamba: acts(c.inner)?,
            up: acts(c.inner.max(c.ffn))?,
            logits: Acts { buffer: memory.zeros(0)?, width: c.vocab },
            logits_rows: 0,
            kv: (0..c.layers).map(kv).collect::<Result<_>>()?,
            cache,
            angles: Angles::default(),
        })
    }

    /// Makes room for the logits of `rows` tokens of a pass, if there is not: a row is as wide as the vocabulary.
    pub fn hold_logits(&mut self, memory: &dyn Memory, rows: usize) -> Result<()> {
        if self.logits_rows < rows {
            self.logits.buffer = memory.zeros(rows * self.logits.width)?;
            self.logits_rows = rows;
        }
        Ok(())
    }

    /// Returns the longest chunk that there is room for.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Returns the logits of the last pass `[rows, vocab]`.
    pub fn logits(&self) -> &Buffer {
        &self.logits.buffer
    }

    /// Returns the residual stream of the chunk `[tokens, hidden]`, for callers that run the layers one by one.
    pub fn hidden_mut(&mut self) -> &mut Buffer {
        &mut self.x.buffer
    }

    /// Returns the chunk's keys and values in a producer, `None` in a consumer.
    pub fn kv_mut(&mut self, layer: usize) -> Option<&mut [Buffer; 2]> {
        self.kv[layer].as_mut()
    }
}
