//! The state as bytes, for files: for each layer the key rows and value rows of the text, oldest first, then conv and
//! SSM state. Independent of the session's context size. Little-endian.

use super::{KvLayout, State};
use crate::{
    backend::Memory,
    format::{
        CacheType,
        codec::{decode_row, encode_row},
    },
    model::Config,
};

/// Returns the image size in bytes of a state after `tokens` tokens of text, with the rows of global layers if
/// `global_layers`.
pub fn image_bytes(c: &Config, cache: CacheType, tokens: usize, global_layers: bool) -> usize {
    let (k_width, v_width) = c.kv_widths();
    let rows: usize = (0..c.layers)
        .filter(|&layer| c.is_producer(layer) && (global_layers || c.windowed[layer]))
        .map(|layer| KvLayout::new(c, layer, tokens).rows() - c.meta_tokens)
        .sum();
    let values = c.layers * c.inner * (c.conv_kernel - 1 + c.state);
    cache.size(rows * (k_width + v_width)) + CacheType::F32.size(values)
}

/// Whether all values of `image` are finite; it has [`image_bytes`] bytes.
pub fn image_is_finite(c: &Config, cache: CacheType, tokens: usize, global_layers: bool, image: &[u8]) -> bool {
    let (k_width, v_width) = c.kv_widths();
    let mut rest = image;
    let mut next = |cache: CacheType, values: usize| {
        let (bytes, after) = rest.split_at(cache.size(values));
        rest = after;
        let mut read = vec![0.0; values];
        decode_row(cache.dtype(), bytes, &mut read);
        read.iter().all(|v| v.is_finite())
    };
    (0..c.layers).all(|layer| {
        let has_rows = c.is_producer(layer) && (global_layers || c.windowed[layer]);
        let rows = if has_rows { KvLayout::new(c, layer, tokens).rows() - c.meta_tokens } else { 0 };
        next(cache, rows * k_width)
            && next(cache, rows * v_width)
            && next(CacheType::F32, (c.conv_kernel - 1) * c.inner)
            && next(CacheType::F32, c.inner * c.state)
    })
}

impl State {
    /// Appends the image to `out`.
    pub fn write_image(
        &self,
        b: &mut dyn Memory,
        c: &Config,
        cache: CacheType,
        global_layers: bool,
        out: &mut Vec<u8>,
    ) {
        let (k_width, v_width) = c.kv_widths();
        for layer in &self.layers {
            if let Some(kv) = layer.kv.as_ref().filter(|kv| global_layers || kv.layout.is_ring()) {
                let rows = kv.layout.text_rows(self.position);
                let oldest = self.position - rows.len();
                for (memory, width) in [(&kv.k, k_width), (&kv.v, v_width)] {
                    let values = b.download(memory, rows.end * width);
                    for position in oldest..self.position {
                        encode(cache, &values[kv.layout.row(position) * width..][..width], out);
                    }
                }
            }
            encode(CacheType::F32, &b.download(&layer.conv, (c.conv_kernel - 1) * c.inner), out);
            encode(CacheType::F32, &b.download(&layer.ssm, c.inner * c.state), out);
        }
    }

    /// Restores the state after `tokens` tokens of text from `image`, of [`image_bytes`] bytes. Without
    /// `global_layers`, the rows of global layers are unchanged.
    pub fn read_image(
        &mut self,
        b: &mut dyn Memory,
        c: &Config,
        cache: CacheType,
        global_layers: bool,
        tokens: usize,
        image: &[u8],
    ) {
        let (k_width, v_width) = c.kv_widths();
        let mut rest = image;
        let mut next = |cache: CacheType, values: usize| {
            let (bytes, after) = rest.split_at(cache.size(values));
            rest = after;
            let mut read = vec![0.0; values];
            decode_row(cache.dtype(), bytes, &mut read);
            read
        };
        self.position = c.meta_tokens + tokens;
        for layer in &mut self.layers {
            if let Some(kv) = layer.kv.as_mut().filter(|kv| global_layers || kv.layout.is_ring()) {
                let (rows, row) = (kv.layout.text_rows(self.position), kv.layout.row(self.position));
                // In a full ring, the oldest position follows the newest.
                let until_end = if rows.len() == tokens { rows.len() } else { rows.end - row };
                let first = if rows.len() == tokens { rows.start } else { row };
                for (memory, width) in [(&mut kv.k, k_width), (&mut kv.v, v_width)] {
                    let values = next(cache, rows.len() * width);
                    let (end, start) = values.split_at(until_end * width);
                    b.upload(end, memory, first * width);
                    b.upload(start, memory, rows.start * width);
                }
            }
            b.upload(&next(CacheType::F32, (c.conv_kernel - 1) * c.inner), &mut layer.conv, 0);
            b.upload(&next(CacheType::F32, c.inner * c.state), &mut layer.ssm, 0);
        }
    }
}

/// The values came from a cache of this type, so storing them again is lossless.
fn encode(cache: CacheType, values: &[f32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + cache.size(values.len()), 0);
    // A value out of range becomes infinite, which the check of the logits detects.
    let _ = encode_row(cache.dtype(), values, &mut out[at..]);
}
