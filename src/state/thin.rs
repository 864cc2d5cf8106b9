//! Thinned images: several states of one text, each without the rows shared with a later state's image, which are all
//! rows while the text is shorter than the windows.

use std::ops::Range;

use super::KvLayout;
use crate::{format::CacheType, model::Config};

/// Identifies an image: the state after `tokens` tokens of text, with the rows of global layers if `global_layers`.
#[derive(Clone, Copy, Debug)]
pub struct ImageOf {
    pub tokens: usize,
    pub global_layers: bool,
}

/// A part of an image: rows of `row_bytes` bytes for a range of text positions. Conv and SSM states are one row that is
/// never shared.
struct Rows {
    rows: Range<usize>,
    row_bytes: usize,
}

/// Returns the parts of an image; `None` for rows that it lacks, so that the parts of all images correspond.
fn parts(c: &Config, cache: CacheType, of: ImageOf) -> Vec<Option<Rows>> {
    let (k_width, v_width) = c.kv_widths();
    let states = CacheType::F32.size(c.inner * (c.conv_kernel - 1 + c.state));
    let mut parts = Vec::new();
    for layer in 0..c.layers {
        let has_rows = c.is_producer(layer) && (of.global_layers || c.windowed[layer]);
        let kept = KvLayout::new(c, layer, of.tokens).rows() - c.meta_tokens;
        for width in [k_width, v_width] {
            let rows = of.tokens - kept..of.tokens;
            parts.push(has_rows.then(|| Rows { rows, row_bytes: cache.size(width) }));
        }
        parts.push(Some(Rows { rows: 0..1, row_bytes: states }));
    }
    parts
}

/// Returns for each part of the image `of`: its number of rows, the range of rows shared with the image of `later`, the
/// bytes per row, and the offset of the shared rows in that image.
fn shared(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf) -> Vec<(usize, Range<usize>, usize, usize)> {
    let mut at = 0; // in the later image
    let mut shared = Vec::new();
    for (i, (part, other)) in parts(c, cache, of).into_iter().zip(parts(c, cache, later)).enumerate() {
        let is_state = i % 3 == 2;
        if let Some(Rows { rows, row_bytes }) = part {
            let common = match &other {
                Some(other) if !is_state => other.rows.start.max(rows.start)..rows.end.min(other.rows.end),
                _ => 0..0,
            };
            let offset =
                at + other.as_ref().map_or(0, |other| common.start.saturating_sub(other.rows.start)) * row_bytes;
            let within = if common.is_empty() { 0..0 } else { common.start - rows.start..common.end - rows.start };
            shared.push((rows.len(), within, row_bytes, offset));
        }
        at += other.map_or(0, |other| other.rows.len() * other.row_bytes);
    }
    shared
}

/// Returns the size in bytes of the thinned image `of`.
pub fn thinned_bytes(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf) -> usize {
    shared(c, cache, of, later).into_iter().map(|(rows, common, bytes, _)| (rows - common.len()) * bytes).sum()
}

/// Returns `image` (of `of`) without the rows shared with the image of `later`.
pub fn thinned(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf, image: &[u8]) -> Vec<u8> {
    let (mut rest, mut thin) = (image, Vec::new());
    for (rows, common, bytes, _) in shared(c, cache, of, later) {
        let (part, after) = rest.split_at(rows * bytes);
        thin.extend_from_slice(&part[..common.start * bytes]);
        thin.extend_from_slice(&part[common.end * bytes..]);
        rest = after;
    }
    thin
}

/// Restores the image `of` from its [`thinned`] form and the image of `later`.
pub fn restored(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf, thin: &[u8], later_image: &[u8]) -> Vec<u8> {
    let (mut rest, mut image) = (thin, Vec::new());
    for (rows, common, bytes, offset) in shared(c, cache, of, later) {
        let (before, after) = rest.split_at(common.start * bytes);
        let (rows_after, after) = after.split_at((rows - common.end) * bytes);
        image.extend_from_slice(before);
        image.extend_from_slice(&later_image[offset..offset + common.len() * bytes]);
        image.extend_from_slice(rows_after);
        rest = after;
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::image_bytes;

    /// Returns an image whose bytes identify their part and row.
    fn image(c: &Config, cache: CacheType, of: ImageOf) -> Vec<u8> {
        let mut image = Vec::new();
        for (i, part) in parts(c, cache, of).into_iter().enumerate() {
            for row in part.iter().flat_map(|part| part.rows.clone()) {
                let mark = if i % 3 == 2 { of.tokens as u8 } else { row as u8 };
                image.extend(std::iter::repeat_n(mark ^ i as u8, part.as_ref().map_or(0, |part| part.row_bytes)));
            }
        }
        image
    }

    #[test]
    fn thinned_images_are_restored_and_share_all_common_rows() {
        let config = Config { window: Some(16), ..Config::hymba_1_5b() };
        for cache in CacheType::ALL {
            for (tokens, later) in [(3, 9), (9, 9), (9, 16), (9, 20), (9, 25), (20, 30), (20, 50), (16, 17)] {
                let of = ImageOf { tokens, global_layers: false };
                for later in [true, false].map(|global_layers| ImageOf { tokens: later, global_layers }) {
                    let (full, other) = (image(&config, cache, of), image(&config, cache, later));
                    assert_eq!(full.len(), image_bytes(&config, cache, of.tokens, of.global_layers));
                    let thin = thinned(&config, cache, of, later, &full);
                    assert_eq!(thin.len(), thinned_bytes(&config, cache, of, later));
                    assert_eq!(restored(&config, cache, of, later, &thin, &other), full, "{of:?}, {later:?}");
                    let states = image_bytes(&config, cache, 0, false);
                    assert!(later.tokens > 16 || thin.len() == states, "a short text shares all rows");
                    assert!(later.tokens < tokens + 16 || thin.len() == full.len(), "far texts share none");
                }
            }
        }
    }
}
