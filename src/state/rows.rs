//! Copies of parts of a text's state: KV rows of a range of tokens, and the conv and SSM state after a token. The rows
//! of consecutive ranges and the last conv and SSM state restore the whole state.

use std::ops::Range;

use super::State;
use crate::{
    Result,
    backend::{Buffer, Memory, Op},
    format::{
        CacheType,
        codec::{decode_row, encode_row},
    },
    model::Config,
};

/// KV rows of a range of tokens, for all producers. Windowed layers have only those that are still visible to later
/// tokens.
pub struct Rows {
    /// The range of tokens, without meta tokens.
    tokens: Range<usize>,
    cache: CacheType,
    layers: Vec<Option<LayerRows>>,
}

/// The rows of a layer, from token `first` to the last.
struct LayerRows {
    first: usize,
    k: Buffer,
    v: Buffer,
}

/// Conv and SSM state of all layers.
pub struct Recurrent {
    layers: Vec<[Buffer; 2]>,
}

impl State {
    /// Returns the rows of `tokens`, as far as rings have not overwritten them.
    pub fn rows(&self, memory: &mut dyn Memory, c: &Config, tokens: Range<usize>) -> Result<Rows> {
        let (k_width, v_width) = c.kv_widths();
        let position = self.position - c.meta_tokens;
        let mut layers = Vec::with_capacity(c.layers);
        for layer in &self.layers {
            let Some(kv) = &layer.kv else {
                layers.push(None);
                continue;
            };
            let available = kv.layout.text_rows(self.position).len();
            let first = tokens.start.max(position - available);
            if first >= tokens.end {
                layers.push(None);
                continue;
            }
            let rows = tokens.end - first;
            let mut copy = |from, dim, width| {
                let mut to = memory.kv_rows(self.cache, rows, c.kv_heads, dim)?;
                for (row, from_row, rows) in kv.layout.copy_ranges(c.meta_tokens + first, rows) {
                    memory.run(Op::CopyRows { from: (from, from_row), to: (&mut to, row), rows, width });
                }
                Ok(to)
            };
            let (k, v) = (copy(&kv.k, c.key_dim, k_width)?, copy(&kv.v, c.value_dim, v_width)?);
            layers.push(Some(LayerRows { first, k, v }));
        }
        Ok(Rows { tokens, cache: self.cache, layers })
    }

    /// Restores the rows. The rows of earlier tokens must be restored before.
    pub fn put_rows(&mut self, memory: &mut dyn Memory, c: &Config, rows: &Rows) {
        let (k_width, v_width) = c.kv_widths();
        for (layer, saved) in self.layers.iter_mut().zip(&rows.layers) {
            let (Some(kv), Some(saved)) = (&mut layer.kv, saved) else { continue };
            let tokens = rows.tokens.end - saved.first;
            for (from, to, rows) in kv.layout.copy_ranges(c.meta_tokens + saved.first, tokens) {
                memory.run(Op::CopyRows { from: (&saved.k, from), to: (&mut kv.k, to), rows, width: k_width });
                memory.run(Op::CopyRows { from: (&saved.v, from), to: (&mut kv.v, to), rows, width: v_width });
            }
        }
    }

    /// Returns a copy of the conv and SSM state.
    pub fn recurrent(&self, memory: &mut dyn Memory, c: &Config) -> Result<Recurrent> {
        let mut layers = Vec::with_capacity(c.layers);
        for layer in &self.layers {
            let mut copy = |from, rows, width| {
                let mut to = memory.zeros(rows * width)?;
                memory.run(Op::CopyRows { from: (from, 0), to: (&mut to, 0), rows, width });
                Ok(to)
            };
            layers.push([copy(&layer.conv, c.conv_kernel - 1, c.inner)?, copy(&layer.ssm, c.inner, c.state)?]);
        }
        Ok(Recurrent { layers })
    }

    /// Restores the conv and SSM state after `tokens` tokens of text, whose rows must be restored already.
    pub fn put_recurrent(&mut self, memory: &mut dyn Memory, c: &Config, from: &Recurrent, tokens: usize) {
        for (layer, [conv, ssm]) in self.layers.iter_mut().zip(&from.layers) {
            let (to, rows) = ((&mut layer.conv, 0), c.conv_kernel - 1);
            memory.run(Op::CopyRows { from: (conv, 0), to, rows, width: c.inner });
            memory.run(Op::CopyRows { from: (ssm, 0), to: (&mut layer.ssm, 0), rows: c.inner, width: c.state });
        }
        self.position = c.meta_tokens + tokens;
    }
}

impl Rows {
    /// Returns the range of tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Returns their size in bytes.
    pub fn bytes(&self, c: &Config) -> usize {
        let (k_width, v_width) = c.kv_widths();
        let rows: usize = self.layers.iter().flatten().map(|layer| self.tokens.end - layer.first).sum();
        self.cache.size(rows * (k_width + v_width))
    }

    /// Splits the rows into those before token `at` and those from it on.
    pub fn split(&self, memory: &mut dyn Memory, c: &Config, at: usize) -> Result<[Self; 2]> {
        Ok([self.part(memory, c, self.tokens.start..at)?, self.part(memory, c, at..self.tokens.end)?])
    }

    fn part(&self, memory: &mut dyn Memory, c: &Config, tokens: Range<usize>) -> Result<Self> {
        let (k_width, v_width) = c.kv_widths();
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let part = layer.as_ref().map(|layer| (layer, layer.first.max(tokens.start)));
            let Some((layer, first)) = part.filter(|(_, first)| *first < tokens.end) else {
                layers.push(None);
                continue;
            };
            let rows = tokens.end - first;
            let mut copy = |from, dim, width| {
                let mut to = memory.kv_rows(self.cache, rows, c.kv_heads, dim)?;
                memory.run(Op::CopyRows { from: (from, first - layer.first), to: (&mut to, 0), rows, width });
                Ok(to)
            };
            let (k, v) = (copy(&layer.k, c.key_dim, k_width)?, copy(&layer.v, c.value_dim, v_width)?);
            layers.push(Some(LayerRows { first, k, v }));
        }
        Ok(Self { tokens, cache: self.cache, layers })
    }

    /// Whether windowed layers lack rows that are visible after `tokens` tokens.
    pub fn lack(&self, c: &Config, tokens: usize) -> bool {
        let from = self.tokens.start.max(tokens.saturating_sub(c.window.unwrap_or(0)));
        let windowed = self.layers.iter().zip(&c.windowed).enumerate();
        from < self.tokens.end
            && windowed
                .filter(|(layer, (_, windowed))| **windowed && c.is_producer(*layer))
                .any(|(_, (layer, _))| layer.as_ref().is_none_or(|layer| layer.first > from))
    }

    /// Replaces layers by those of `more`, rows of the same tokens, that have more rows.
    pub fn complete_with(&mut self, more: Self) {
        for (layer, more) in self.layers.iter_mut().zip(more.layers) {
            let Some(more) = more else { continue };
            if layer.as_ref().is_none_or(|layer| layer.first > more.first) {
                *layer = Some(more);
            }
        }
    }
}

/// Serialization: layer by layer, little-endian.
impl Rows {
    /// Returns the first token of each layer's rows; `None` for layers without rows.
    pub fn firsts(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.as_ref().map(|layer| layer.first)).collect()
    }

    /// Appends the rows to `out`.
    pub fn write(&self, memory: &mut dyn Memory, c: &Config, out: &mut Vec<u8>) {
        let (k_width, v_width) = c.kv_widths();
        for layer in self.layers.iter().flatten() {
            let rows = self.tokens.end - layer.first;
            encode(self.cache, &memory.download(&layer.k, rows * k_width), out);
            encode(self.cache, &memory.download(&layer.v, rows * v_width), out);
        }
    }

    /// Returns the number of bytes that [`Rows::write`] appends; `None` if the model cannot have such rows.
    pub fn written(c: &Config, cache: CacheType, tokens: &Range<usize>, firsts: &[Option<usize>]) -> Option<usize> {
        let (k_width, v_width) = c.kv_widths();
        let mut rows = 0usize;
        for (layer, first) in firsts.iter().enumerate() {
            if let &Some(first) = first {
                if !c.is_producer(layer) || first < tokens.start || first >= tokens.end {
                    return None;
                }
                rows = rows.checked_add(tokens.end - first)?;
            }
        }
        let values = rows.checked_mul(k_width + v_width)?;
        (firsts.len() == c.layers && tokens.start < tokens.end).then(|| cache.size(values))
    }

    /// Reads rows from `bytes`, which [`Rows::write`] wrote; there are [`Rows::written`] of them.
    pub fn read(
        memory: &mut dyn Memory,
        c: &Config,
        cache: CacheType,
        tokens: Range<usize>,
        firsts: &[Option<usize>],
        bytes: &[u8],
    ) -> Result<Self> {
        let (k_width, v_width) = c.kv_widths();
        let (mut rest, mut layers) = (bytes, Vec::with_capacity(firsts.len()));
        for first in firsts {
            let Some(first) = *first else {
                layers.push(None);
                continue;
            };
            let rows = tokens.end - first;
            let mut next = |dim, width| {
                let mut to = memory.kv_rows(cache, rows, c.kv_heads, dim)?;
                memory.upload(&decode(cache, rows * width, &mut rest), &mut to, 0);
                Ok(to)
            };
            let (k, v) = (next(c.key_dim, k_width)?, next(c.value_dim, v_width)?);
            layers.push(Some(LayerRows { first, k, v }));
        }
        Ok(Self { tokens, cache, layers })
    }
}

impl Recurrent {
    /// Returns its size in bytes, in memory and in a file.
    pub fn bytes(c: &Config) -> usize {
        CacheType::F32.size(c.layers * c.inner * (c.conv_kernel - 1 + c.state))
    }

    /// Appends the state to `out`.
    pub fn write(&self, memory: &mut dyn Memory, c: &Config, out: &mut Vec<u8>) {
        for [conv, ssm] in &self.layers {
            encode(CacheType::F32, &memory.download(conv, (c.conv_kernel - 1) * c.inner), out);
            encode(CacheType::F32, &memory.download(ssm, c.inner * c.state), out);
        }
    }

    /// Reads the state from `bytes`, which [`Recurrent::write`] wrote; there are [`Recurrent::bytes`] of them.
    pub fn read(memory: &mut dyn Memory, c: &Config, bytes: &[u8]) -> Result<Self> {
        let (mut rest, mut layers) = (bytes, Vec::with_capacity(c.layers));
        for _ in 0..c.layers {
            let mut next = |values| {
                let mut to = memory.zeros(values)?;
                memory.upload(&decode(CacheType::F32, values, &mut rest), &mut to, 0);
                Ok(to)
            };
            layers.push([next((c.conv_kernel - 1) * c.inner)?, next(c.inner * c.state)?]);
        }
        Ok(Self { layers })
    }
}

/// The values came from a cache of this type, so storing them again is lossless.
fn encode(cache: CacheType, values: &[f32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + cache.size(values.len()), 0);
    // A value out of range becomes infinite, which the check of the logits detects.
    let _ = encode_row(cache.dtype(), values, &mut out[at..]);
}

fn decode(cache: CacheType, values: usize, rest: &mut &[u8]) -> Vec<f32> {
    let (bytes, after) = rest.split_at(cache.size(values));
    *rest = after;
    let mut read = vec![0.0; values];
    decode_row(cache.dtype(), bytes, &mut read);
    read
}
