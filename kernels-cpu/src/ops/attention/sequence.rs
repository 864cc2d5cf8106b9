//! The rows visible to a range of tokens, as one sequence.

use std::ops::Range;

use super::{Attention, KvRows, KvSpan, TILE_ROWS, hk};

/// The kernels' sequence, and the part of it visible to each token.
pub(super) struct Sequence {
    /// A prefix visible to all tokens, then the rest.
    spans: [KvSpan; 4],
    /// For each token, the range of the sequence after the prefix that is visible to it.
    pub first: Vec<usize>,
    pub end: Vec<usize>,
    /// The offset of the rest within its first tile.
    tile_offset: usize,
}

impl Sequence {
    /// Returns the sequence; `position` is that of the chunk's first token.
    pub fn new(visible: &[[KvSpan; 4]], position: usize) -> Self {
        let [prefix, old, new, _] = visible[0];
        let cached = old.rows + new.rows;
        let own = |token: &[KvSpan; 4]| token[3].first..token[3].first + token[3].rows;
        let start = visible.iter().map(|v| own(v).start).min().unwrap_or(0);
        let stop = visible.iter().map(|v| own(v).end).max().unwrap_or(0);
        let mut first = Vec::with_capacity(visible.len());
        let mut end = Vec::with_capacity(visible.len());
        for token in visible {
            let seen = token[1].rows + token[2].rows;
            assert!(token[0] == prefix && seen <= cached && token[3].rows > 0, "attention: rows are out of order");
            let chunk = prefix.rows + cached; // start of the chunk's rows
            assert!(seen == 0 || own(token).start == start, "attention: rows between those of a token are missing");
            first.push(if seen > 0 { chunk - seen } else { chunk + own(token).start - start });
            end.push(chunk + own(token).end - start);
        }
        let before = (position + start).checked_sub(cached).expect("attention: rows from before the text");
        let chunk = KvSpan { chunk: true, first: start, rows: stop - start };
        Self { spans: [prefix, old, new, chunk], first, end, tile_offset: before % TILE_ROWS }
    }

    /// Returns the boundaries of the tiles, including the end.
    pub fn tiles(&self) -> Vec<usize> {
        let [prefix, rows] = [self.spans[0].rows, self.rows()];
        let rest = (prefix..prefix + 1).chain((prefix + TILE_ROWS - self.tile_offset..rows).step_by(TILE_ROWS));
        (0..prefix).step_by(TILE_ROWS).chain(rest).chain([rows]).collect()
    }

    fn rows(&self) -> usize {
        self.spans.iter().map(|r| r.rows).sum()
    }

    /// Returns the spans of some KV heads for the kernels.
    pub fn spans(&self, a: &Attention<'_>, heads: &Range<usize>) -> [hk::hk_kv_span; 4] {
        self.spans.map(|span| {
            let ([k, v], [k_rows, v_rows]) = a.kv(span);
            let (k_head_stride, v_head_stride) = (k_rows * a.key_dim, v_rows * a.value_dim);
            let at = |rows: KvRows<'_>, i| if span.rows > 0 { rows.at(i) } else { std::ptr::null() };
            hk::hk_kv_span {
                k: at(k, heads.start * k_head_stride + span.first * a.key_dim),
                v: at(v, heads.start * v_head_stride + span.first * a.value_dim),
                rows: span.rows,
                k_head_stride,
                v_head_stride,
            }
        })
    }

    /// Returns the kernels' sequence for `spans`, which belong to `heads`.
    pub fn kernel_args(
        &self,
        a: &Attention<'_>,
        heads: &Range<usize>,
        spans: &[hk::hk_kv_span; 4],
    ) -> hk::hk_kv_sequence {
        hk::hk_kv_sequence {
            type_: a.cache[0].dtype(),
            kv_heads: heads.len(),
            key_dim: a.key_dim,
            value_dim: a.value_dim,
            spans: spans.as_ptr(),
            n_spans: spans.len(),
            rows: self.rows(),
            prefix: self.spans[0].rows,
            tile_offset: self.tile_offset,
        }
    }
}
