//! Activation buffers of a pass, reused by every layer.

use std::ops::Range;

use super::{
    Phase, Segment,
    pending::{DECODE_TOKENS, Pending},
};
use crate::{
    Result,
    backend::{Angles, Buffer, MatMut, MatRef, Memory, RowSpan},
    format::CacheType,
    model::Config,
};

/// A matrix of activations `[tokens, width]`.
pub(super) struct Acts {
    pub(super) buffer: Buffer,
    width: usize,
}

impl Acts {
    pub(super) fn part(&self, rows: Range<usize>, cols: Range<usize>) -> MatRef<'_> {
        let start = rows.start * self.width + cols.start;
        MatRef { buffer: &self.buffer, rows: rows.len(), start, cols: cols.len(), stride: self.width }
    }

    pub(super) fn part_mut(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        let start = rows.start * self.width + cols.start;
        MatMut { buffer: &mut self.buffer, rows: rows.len(), start, cols: cols.len(), stride: self.width }
    }

    pub(super) fn cols(&self, tokens: usize, cols: Range<usize>) -> MatRef<'_> {
        self.part(0..tokens, cols)
    }

    pub(super) fn cols_mut(&mut self, tokens: usize, cols: Range<usize>) -> MatMut<'_> {
        self.part_mut(0..tokens, cols)
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> MatRef<'_> {
        self.part(rows, 0..self.width)
    }

    pub(super) fn rows_mut(&mut self, rows: Range<usize>) -> MatMut<'_> {
        self.part_mut(rows, 0..self.width)
    }

    pub(super) fn all(&self, tokens: usize) -> MatRef<'_> {
        self.rows(0..tokens)
    }

    pub(super) fn all_mut(&mut self, tokens: usize) -> MatMut<'_> {
        self.rows_mut(0..tokens)
    }

    /// Resizes the buffer to another `width`, dropping its contents.
    pub(super) fn resized(&mut self, tokens: usize, width: usize) -> MatMut<'_> {
        self.set_width(width);
        self.all_mut(tokens)
    }

    /// [`Acts::resized`], for a matrix that is written in parts.
    pub(super) fn set_width(&mut self, width: usize) {
        self.width = width;
    }
}

/// Activation buffers of a pass, with the rows of all segments concatenated. To save memory, a layer uses some of them
/// twice, as each field notes.
pub struct Scratch {
    /// Capacity in rows.
    capacity: usize,
    /// Rows of the pass.
    pub(super) rows: usize,
    pub(super) spans: Vec<RowSpan>,
    /// The residual stream `[tokens, hidden]`.
    pub(super) x: Acts,
    /// Input of the next product: x normed, the convolution's output, the average of the heads.
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
    logits_capacity: usize,
    /// A copy of the logits, since a GPU may be overwriting the original.
    pub(super) logits_read: Vec<f32>,
    /// Rows of the logits of each segment.
    pub(super) logits_rows: Vec<Range<usize>>,
    /// Pending results of each segment.
    pub(super) pending: Vec<Pending>,
    pub(super) angles: Angles,
}

/// Dimensions of a [`Scratch`].
pub struct ScratchSize<'a> {
    /// The model's sizes.
    pub config: &'a Config,
    /// Rows of the longest pass.
    pub rows: usize,
    /// How keys and values are stored.
    pub cache: CacheType,
}

impl Scratch {
    /// Allocates buffers for passes over one text, without logits.
    pub fn new(memory: &dyn Memory, size: ScratchSize<'_>) -> Result<Self> {
        let ScratchSize { config, rows, cache } = size;
        let [x, input, mixed, attention, dt_b_c, mamba, up] = activations(memory, config, rows)?;
        Ok(Self {
            capacity: rows,
            rows: 0,
            spans: Vec::new(),
            x,
            input,
            mixed,
            attention,
            dt_b_c,
            mamba,
            up,
            logits: Acts { buffer: memory.zeros(0)?, width: config.vocab },
            logits_capacity: 0,
            logits_read: Vec::new(),
            logits_rows: Vec::new(),
            pending: vec![Pending::new(memory, config, rows, cache)?],
            angles: Angles::default(),
        })
    }

    /// Prepares a pass over these segments, growing buffers as needed. To be called before every pass.
    pub fn prepare(&mut self, memory: &dyn Memory, config: &Config, segments: &[Segment<'_>]) -> Result<()> {
        self.rows = segments.iter().map(|segment| segment.tokens).sum();
        self.spans = spans(segments.iter().map(|segment| (segment.tokens, segment.phase)));
        if self.rows > self.capacity {
            [self.x, self.input, self.mixed, self.attention, self.dt_b_c, self.mamba, self.up] =
                activations(memory, config, self.rows)?;
            self.capacity = self.rows;
        }
        let mut end = 0;
        self.logits_rows.clear();
        for segment in segments {
            self.logits_rows.push(end..end + segment.logits.len());
            end += segment.logits.len();
        }
        self.ensure_logits(memory, end)?;
        for (i, segment) in segments.iter().enumerate() {
            self.ensure_pending(memory, config, i, segment)?;
        }
        Ok(())
    }

    /// Makes `pending[i]` fit the segment, from unused ones or newly allocated.
    fn ensure_pending(&mut self, memory: &dyn Memory, config: &Config, i: usize, segment: &Segment<'_>) -> Result<()> {
        let (tokens, cache) = (segment.tokens, segment.state.cache);
        let fits = (i..self.pending.len()).filter(|&j| self.pending[j].holds(tokens, cache));
        let j = fits.min_by_key(|&j| self.pending[j].rows).unwrap_or(self.pending.len());
        if j == self.pending.len() {
            let new = Pending::new(memory, config, tokens.max(DECODE_TOKENS), cache)?;
            let too_small = (i..j).find(|&j| self.pending[j].cache == cache);
            match too_small {
                Some(old) => self.pending[old] = new,
                None => self.pending.push(new),
            }
            self.pending.swap(i, too_small.unwrap_or(j));
        } else {
            self.pending.swap(i, j);
        }
        if segment.is_divisible() { self.pending[i].ensure_inputs(memory, config) } else { Ok(()) }
    }

    /// Grows the logits buffer to `rows` rows of the vocabulary's width.
    pub fn ensure_logits(&mut self, memory: &dyn Memory, rows: usize) -> Result<()> {
        if self.logits_capacity < rows {
            self.logits.buffer = memory.zeros(rows * self.logits.width)?;
            self.logits_capacity = rows;
        }
        Ok(())
    }

    /// Returns the logits of the last pass's segment `i` `[tokens, vocab]`.
    pub fn logits(&self, i: usize) -> &[f32] {
        let Range { start, end } = self.logits_rows[i];
        let all = if let Buffer::Gpu(_) = self.logits.buffer { &self.logits_read } else { self.logits.buffer.f32() };
        &all[start * self.logits.width..end * self.logits.width]
    }

    /// Returns the residual stream of the pass `[tokens, hidden]`, for callers that run the layers one by one.
    pub fn hidden_mut(&mut self) -> &mut Buffer {
        &mut self.x.buffer
    }

    /// Returns the keys and values of the first segment in a producer, `None` in a consumer.
    pub fn kv_mut(&mut self, layer: usize) -> Option<&mut [Buffer; 2]> {
        self.pending[0].layers[layer].kv.as_mut()
    }
}

/// Allocates `rows` rows of: x, input, mixed, attention, dt_b_c, mamba, up.
fn activations(memory: &dyn Memory, c: &Config, rows: usize) -> Result<[Acts; 7]> {
    let acts = |width: usize| Ok(Acts { buffer: memory.zeros(rows * width)?, width });
    let (k, v) = c.kv_widths();
    Ok([
        acts(c.hidden)?,
        acts(c.hidden.max(c.inner))?,
        acts((c.hidden + k + v + 2 * c.inner).max(c.ffn))?,
        acts(c.inner)?,
        acts((c.dt_rank + 2 * c.state).next_multiple_of(4))?, // GPUs read rows four values at a time
        acts(c.inner)?,
        acts(c.inner.max(c.ffn))?,
    ])
}

/// Groups the rows of segments by phase: consecutive decode segments form one span.
fn spans(segments: impl Iterator<Item = (usize, Phase)>) -> Vec<RowSpan> {
    let mut spans: Vec<RowSpan> = Vec::new();
    for (rows, phase) in segments {
        let decode = phase == Phase::Decode;
        match spans.last_mut() {
            Some(last) if decode && last.decode => last.rows += rows,
            _ => spans.push(RowSpan { rows, decode }),
        }
    }
    spans
}
