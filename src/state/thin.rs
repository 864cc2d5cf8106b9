//! Images of states of one text, each without the rows that the image of a later state has: as long as the text is shorter than
//! the windows, that is all of them.

use std::ops::Range;

use super::KvLayout;
use crate::{format::CacheType, model::Config};

/// Which image: that of the state after `tokens` tokens of text; `global_layers`: with the rows of global layers.
#[derive(Clone, Copy, Debug)]
pub struct ImageOf {
    pub tokens: usize,
    pub global_layers: bool,
}

/// A part of an image: rows of this many bytes for these positions of the text. Conv and SSM states are a row that no other
/// image has.
struct Rows {
    rows: Range<usize>,
    row_bytes: usize,
}

/// The parts of an image; `None` stands for rows that it does not have, so that the parts of all images correspond.
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

/// For each part of the image `of`: its rows, where its rows that the image of `later` has begin and end among them, the bytes
/// of a row, and where those rows are in that image.
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
            let place =
                at + other.as_ref().map_or(0, |other| common.start.saturating_sub(other.rows.start)) * row_bytes;
            let within = if common.is_empty() { 0..0 } else { common.start - rows.start..common.end - rows.start };
            shared.push((rows.len(), within, row_bytes, place));
        }
        at += other.map_or(0, |other| other.rows.len() * other.row_bytes);
    }
    shared
}

/// Returns how many bytes [`thinned`] leaves of the image `of`.
pub fn thinned_bytes(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf) -> usize {
    shared(c, cache, of, later).into_iter().map(|(rows, common, bytes, _)| (rows - common.len()) * bytes).sum()
}

/// Returns `image`, that of `of`, without the rows that the image of `later` has.
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

/// Returns the image `of` which [`thinned`] made `thin`, given that of `later`.
pub fn restored(c: &Config, cache: CacheType, of: ImageOf, later: ImageOf, thin: &[u8], later_image: &[u8]) -> Vec<u8> {
    let (mut rest, mut image) = (thin, Vec::new());
    for (rows, common, bytes, place) in shared(c, cache, of, later) {
        let (before, after) = rest.split_at(common.start * bytes);
        let (behind, after) = after.split_at((rows - common.end) * bytes);
        image.extend_from_slice(before);
        image.extend_from_slice(&later_image[place..place + common.len() * bytes]);
        image.extend_from_slice(behind);
        rest = after;
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::image_bytes;

    /// Bytes that tell which row of which part they are of.
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
    fn images_come_back_whole_and_share_what_they_can() {
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
