//! The KV cache: the row of each position, and the rows visible to a token.

use std::ops::Range;

use crate::{
    backend::{Buffer, KvSpan},
    model::Config,
};

/// A layer's row layout: meta tokens first, then text. A global layer has a row per text token, a windowed one a ring
/// of the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    meta: usize,
    /// Rows for text.
    text: usize,
    windowed: bool,
}

/// Keys and values of one layer.
pub struct KvCache {
    /// The row layout.
    pub layout: KvLayout,
    /// Rotated keys `[rows, kv_heads, key_dim]`.
    pub k: Buffer,
    /// Values `[rows, kv_heads, value_dim]`.
    pub v: Buffer,
}

impl KvLayout {
    /// Returns the layout of a layer for `context` tokens of text, or for the window if that is smaller.
    pub fn new(config: &Config, layer: usize, context: usize) -> Self {
        let windowed = config.windowed[layer];
        let text = match config.window {
            Some(window) if windowed => window.min(context),
            _ => context,
        };
        Self { meta: config.meta_tokens, text, windowed }
    }

    /// Whether new rows overwrite old ones.
    pub fn is_ring(&self) -> bool {
        self.windowed
    }

    /// Returns the rows of the cache.
    pub fn rows(&self) -> usize {
        self.meta.saturating_add(self.text)
    }

    /// Returns the rows that hold text after `position` positions.
    pub fn text_rows(&self, position: usize) -> Range<usize> {
        self.meta..self.rows().min(position).max(self.meta)
    }

    /// Returns the row of `position`.
    pub fn row(&self, position: usize) -> usize {
        match position.checked_sub(self.meta) {
            Some(text) if self.windowed => self.meta + text % self.text,
            _ => position,
        }
    }

    /// Returns the ranges in which the last rows of a chunk are copied to the cache, as many as fit into a ring: (row
    /// of the chunk, row of the cache, rows). The chunk has `tokens` rows and begins at position `start`.
    pub fn copy_ranges(&self, start: usize, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let fit = if self.windowed && start >= self.meta { tokens.min(self.text) } else { tokens };
        let (from, to) = (tokens - fit, self.row(start + tokens - fit));
        let before_end = fit.min(self.rows() - to);
        [(from, to, before_end), (from + before_end, self.meta, fit - before_end)].into_iter().filter(|p| p.2 > 0)
    }

    /// Returns the rows visible to the token at position `start + token` of a chunk that begins at position `start`,
    /// with earlier positions in the cache: spans of rows in order of position. `reach` is how far back a windowed
    /// layer looks (W in prefill, W − 1 in decode, as in the official code). A chunk holds meta tokens or text, not
    /// both.
    pub fn visible(&self, start: usize, token: usize, reach: usize) -> [KvSpan; 4] {
        let position = start + token;
        let text = start >= self.meta; // meta tokens have no prefix and no window
        let meta = if text { self.meta } else { 0 };
        // the first visible position after the meta tokens
        let from = if self.windowed && text { position.saturating_sub(reach).max(meta) } else { meta };
        let cached = start.saturating_sub(from);
        let chunk_from = from.max(start);
        let first = if cached > 0 { self.row(from) } else { 0 };
        let before_end = cached.min(self.rows() - first);
        [
            KvSpan { chunk: false, first: 0, rows: meta },
            KvSpan { chunk: false, first, rows: before_end },
            KvSpan { chunk: false, first: self.meta, rows: cached - before_end },
            KvSpan { chunk: true, first: chunk_from - start, rows: position + 1 - chunk_from },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With any chunking, the visible positions are exactly those of the mask's formula, in order.
    #[test]
    fn visible_rows_match_the_attention_mask() {
        for (meta, window) in [(0, 5), (3, 4), (8, 1), (2, 7)] {
            for windowed in [false, true] {
                for chunk in [1, 2, 3, 5, 16] {
                    for reach in [window, window - 1] {
                        check(KvLayout { meta, text: if windowed { window } else { 40 }, windowed }, chunk, reach);
                    }
                }
            }
        }
    }

    fn check(layout: KvLayout, chunk: usize, reach: usize) {
        let mut holds = vec![usize::MAX; layout.rows()]; // the position in each row
        let mut start = 0;
        while start < layout.meta + 40 {
            let boundary = if start < layout.meta { layout.meta } else { layout.meta + 40 };
            let tokens = chunk.min(boundary - start);
            for token in 0..tokens {
                let position = start + token;
                let want: Vec<usize> = (0..=position)
                    .filter(|&k| !layout.windowed || k < layout.meta || position < layout.meta || position - k <= reach)
                    .collect();
                let runs = layout.visible(start, token, reach);
                let got: Vec<usize> = runs
                    .iter()
                    .flat_map(|r| (r.first..r.first + r.rows).map(|row| if r.chunk { start + row } else { holds[row] }))
                    .collect();
                assert_eq!(got, want, "{layout:?}, position {position}, chunk from {start}");
            }
            for (from, to, rows) in layout.copy_ranges(start, tokens) {
                (0..rows).for_each(|i| holds[to + i] = start + from + i);
            }
            start += tokens;
        }
    }
}
