//! The attention output of a token is bit-identical for any chunk length and any position of its rows in the cache.

use half::f16;
use hymba_kernels_cpu::{Attention, Cpu, Kernels, KvRows, KvSpan, MatMut, MatRef};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const META: usize = 37;

/// Returns rows of meta tokens and text, `width` values each, in the order of a cache with a ring of `ring` rows after `tokens`
/// tokens of text, or in their original order if `ring` is 0.
fn cached(rows: &[u16], width: usize, ring: usize, tokens: usize) -> Vec<u16> {
    let (meta, text) = rows.split_at(META * width);
    let mut cache = meta.to_vec();
    cache.resize((META + ring) * width, 0);
    for (i, row) in text.chunks(width).take(tokens).enumerate().skip(tokens.saturating_sub(ring)) {
        cache[(META + i % ring) * width..][..width].copy_from_slice(row);
    }
    cache
}

/// Converts rows `[rows, heads * dim]` to `[heads, rows, dim]`.
fn by_head(rows: &[u16], heads: usize, width: usize) -> Vec<u16> {
    let dim = width / heads;
    (0..heads).flat_map(|head| rows.chunks(width).flat_map(move |row| &row[head * dim..][..dim])).copied().collect()
}

#[test]
fn attention_does_not_depend_on_the_chunk() {
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    for kernels in Kernels::all() {
        let mut cpu = Cpu::with_kernels(kernels, 2.try_into().unwrap());
        for _ in 0..40 {
            let (kv_heads, group) = (rng.random_range(1..3), rng.random_range(1..7));
            let (key_dim, value_dim) = (rng.random_range(1..70), rng.random_range(1..70));
            let (heads, tokens, text) = (kv_heads * group, rng.random_range(1..20), rng.random_range(20..400));
            let window = rng.random_range(1..text + 50);
            let ring = window + rng.random_range(0..20);
            let q: Vec<f32> = (0..tokens * heads * key_dim).map(|_| rng.random_range(-3.0..3.0)).collect();
            let widths = [key_dim, value_dim].map(|dim| kv_heads * dim);
            let kv = widths.map(|width| {
                let value = |_| f16::from_f32(rng.random_range(-1.0f32..1.0)).to_bits();
                (0..(META + text) * width).map(value).collect::<Vec<u16>>()
            });
            // attention of tokens first .. first + n in a chunk that starts at `begin`
            let mut attend = |first: usize, n: usize, begin: usize, ring: usize| {
                let cache = [0, 1].map(|i| by_head(&cached(&kv[i], widths[i], ring, begin), kv_heads, widths[i]));
                let chunk = [0, 1].map(|i| by_head(&kv[i][(META + begin) * widths[i]..], kv_heads, widths[i]));
                let spans = |token: usize| {
                    let from = token.saturating_sub(window);
                    let old = begin.saturating_sub(from);
                    let row = META + if old > 0 { from % ring } else { 0 };
                    let before_end = old.min(META + ring - row);
                    let own = from.max(begin) - begin;
                    [
                        KvSpan { chunk: false, first: 0, rows: META },
                        KvSpan { chunk: false, first: row, rows: before_end },
                        KvSpan { chunk: false, first: META, rows: old - before_end },
                        KvSpan { chunk: true, first: own, rows: token + 1 - begin - own },
                    ]
                };
                let visible: Vec<_> = (first..first + n).map(spans).collect();
                let args = Attention {
                    q: MatRef::new(&q, n, (first + tokens - text) * heads * key_dim, heads * key_dim, heads * key_dim),
                    heads,
                    kv_heads,
                    key_dim,
                    value_dim,
                    cache: [KvRows::F16(&cache[0]), KvRows::F16(&cache[1])],
                    chunk: [KvRows::F16(&chunk[0]), KvRows::F16(&chunk[1])],
                    visible: &visible,
                    position: META + begin,
                };
                let width = heads * value_dim;
                let mut out = vec![f32::NAN; n * width];
                cpu.attention(&args, MatMut::new(&mut out, n, 0, width, width));
                out
            };
            let together = attend(text - tokens, tokens, 0, 0);
            let single: Vec<f32> = (text - tokens..text).flat_map(|token| attend(token, 1, token, ring)).collect();
            let halves = [text - tokens, text - tokens / 2, text];
            let halves: Vec<f32> = halves.windows(2).flat_map(|w| attend(w[0], w[1] - w[0], w[0], ring)).collect();
            let what = format!("{}, group {group}, keys {key_dim}, values {value_dim}", kernels.name());
            assert!(together.iter().all(|v| v.is_finite()) && single == together && halves == together, "{what}");
        }
    }
}
