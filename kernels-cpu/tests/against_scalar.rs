//! Every kernel of every instruction set that this CPU supports, against the scalar reference: random shapes, odd sizes,
//! unaligned pointers, outputs poisoned with NaN and surrounded by guard values.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use hymba_kernels_cpu::{Attention, Conv, Cpu, Kernels, KvRows, KvSpan, MatMut, MatRef, Scan, Weight, WeightType};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 7;
const GUARD: f32 = 1234.5;
/// Number of guard values before and after every output; odd, so that nothing is aligned.
const MARGIN: usize = 3;

/// A quantized type in both layouts, and the sizes of a block's parts in bytes: scale, minimum and fifth bits, then codes.
struct Quantized {
    plain: WeightType,
    packed: WeightType,
    parts: &'static [usize],
    codes: usize,
}

const QUANTIZED: [Quantized; 7] = {
    use WeightType::*;
    const fn quantized(plain: WeightType, packed: WeightType, parts: &'static [usize], codes: usize) -> Quantized {
        Quantized { plain, packed, parts, codes }
    }
    [
        quantized(HK_Q8_0, HK_Q8_0X8, &[2], 32),
        quantized(HK_Q5_1, HK_Q5_1X8, &[2, 2, 4], 16),
        quantized(HK_Q5_0, HK_Q5_0X8, &[2, 4], 16),
        quantized(HK_Q4_1, HK_Q4_1X8, &[2, 2], 16),
        quantized(HK_Q4_0, HK_Q4_0X8, &[2], 16),
        quantized(HK_IQ4_NL, HK_IQ4_NLX8, &[2], 16),
        quantized(HK_MXFP4, HK_MXFP4X8, &[1], 16),
    ]
};

fn types() -> impl Iterator<Item = WeightType> {
    let floats = [WeightType::HK_F32, WeightType::HK_F16, WeightType::HK_BF16];
    floats.into_iter().chain(QUANTIZED.iter().flat_map(|q| [q.plain, q.packed]))
}

fn cpus() -> Vec<Cpu> {
    Kernels::all()
        .into_iter()
        .filter(|k| k.name() != "scalar")
        .flat_map(|k| [1, 3].map(|threads| Cpu::with_kernels(k, NonZeroUsize::new(threads).unwrap())))
        .collect()
}

fn scalar() -> Cpu {
    Cpu::with_kernels(Kernels::scalar(), NonZeroUsize::MIN)
}

fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// Runs `f` on an output of `n` NaNs between guard values, asserts that these are unchanged, and returns the output.
fn output(n: usize, f: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut all = vec![GUARD; n + 2 * MARGIN];
    all[MARGIN..MARGIN + n].fill(f32::NAN);
    f(&mut all[MARGIN..MARGIN + n]);
    let (front, rest) = all.split_at(MARGIN);
    let (out, back) = rest.split_at(n);
    assert!(front.iter().chain(back).all(|&v| v == GUARD), "written outside the output");
    out.to_vec()
}

/// Asserts that values differ by at most `tolerance` times `scale`, the magnitude of the summands.
fn close(what: &str, want: &[f32], got: &[f32], scale: f32, tolerance: f32) {
    assert_eq!(want.len(), got.len());
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        let error = (w - g).abs() / scale.max(w.abs()).max(f32::MIN_POSITIVE);
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {w} (error {error:e} of {tolerance:e})");
    }
}

/// Returns a random matrix of this type, as bytes that start at an odd address.
fn weight(rng: &mut ChaCha8Rng, dtype: WeightType, rows: usize, cols: usize) -> Vec<u8> {
    let values = random(rng, rows * cols, 1.0);
    let mut bytes = vec![0];
    match dtype {
        WeightType::HK_F32 => values.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        WeightType::HK_F16 => values.iter().for_each(|v| bytes.extend(f16::from_f32(*v).to_le_bytes())),
        WeightType::HK_BF16 => values.iter().for_each(|v| bytes.extend(bf16::from_f32(*v).to_le_bytes())),
        _ => {
            let q = QUANTIZED.iter().find(|q| dtype == q.plain || dtype == q.packed).unwrap();
            let lanes = if dtype == q.packed { 8 } else { 1 };
            for _ in 0..rows.div_ceil(lanes) * cols / 32 {
                for (i, &part) in q.parts.iter().enumerate() {
                    for _ in 0..lanes {
                        match part {
                            1 => bytes.push(rng.random_range(113..125)), // 2^-15 to 2^-4
                            2 => {
                                let max = [0.1, 1.0][i];
                                bytes.extend(f16::from_f32(rng.random_range(-max..max)).to_le_bytes());
                            }
                            _ => bytes.extend(rng.random::<u32>().to_le_bytes()),
                        }
                    }
                }
                bytes.extend((0..lanes * q.codes).map(|_| rng.random::<u8>()));
            }
        }
    }
    bytes
}

#[test]
fn matmul() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for dtype in types() {
            for _ in 0..60 {
                let quantized = !matches!(dtype, WeightType::HK_F32 | WeightType::HK_F16 | WeightType::HK_BF16);
                let rows = rng.random_range(1..70);
                let cols = if quantized { 32 * rng.random_range(1..12) } else { rng.random_range(1..200) };
                let tokens = rng.random_range(1..20);
                let (start, gap) = (rng.random_range(0..5), rng.random_range(0..5));
                let bytes = weight(&mut rng, dtype, rows, cols);
                let w = Weight { dtype, rows, cols, bytes: &bytes[1..] };
                let stride = start + cols + gap;
                let x = random(&mut rng, tokens * stride, 2.0);
                let x = MatRef::new(&x, tokens, start, cols, stride);
                let before = random(&mut rng, tokens * rows, 1.0);
                let [want, got] = [&mut reference, cpu].map(|cpu| {
                    let set = output(tokens * rows, |out| {
                        cpu.matmul(w, x, MatMut::new(out, tokens, 0, rows, rows), false);
                    });
                    let added = output(tokens * rows, |out| {
                        out.copy_from_slice(&before);
                        cpu.matmul(w, x, MatMut::new(out, tokens, 0, rows, rows), true);
                    });
                    [set, added].concat()
                });
                // the largest possible sum of `cols` products; with fewer than eight, two roundings alone exceed the tolerance
                let size = cols.max(8) as f32 * if quantized { 12.8 } else { 1.0 } * 2.0;
                close(&format!("{dtype:?} [{rows}, {cols}] x {tokens}"), &want, &got, size, 1e-7);
            }
        }
    }
}

/// Few tokens use separate kernels (`gemv`), which read groups of eight rows from several streams.
#[test]
fn matmul_of_few_tokens() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    let mut cpus = cpus();
    for q in &QUANTIZED {
        for tokens in 1..=16 {
            let (rows, cols) = (rng.random_range(1..200), 32 * rng.random_range(1..9));
            let (start, gap) = (rng.random_range(0..5), rng.random_range(0..5));
            let bytes = weight(&mut rng, q.packed, rows, cols);
            let w = Weight { dtype: q.packed, rows, cols, bytes: &bytes[1..] };
            let (stride, x_stride) = (start + rows + gap, cols + gap);
            let x = random(&mut rng, tokens * x_stride, 2.0);
            let before = random(&mut rng, tokens * stride, 1.0);
            let accumulate = rng.random();
            let product = |cpu: &mut Cpu, first: usize, tokens: usize| {
                let out = output(tokens * stride, |out| {
                    out.copy_from_slice(&before[first * stride..][..tokens * stride]);
                    let x = MatRef::new(&x[first * x_stride..], tokens, 0, cols, x_stride);
                    cpu.matmul(w, x, MatMut::new(out, tokens, start, rows, stride), accumulate);
                });
                out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let want = product(&mut reference, 0, tokens);
            let floats = |bits: &[u32]| bits.iter().map(|&v| f32::from_bits(v)).collect::<Vec<_>>();
            let all: Vec<_> = cpus.iter_mut().map(|cpu| product(cpu, 0, tokens)).collect();
            for (got, cpu) in all.iter().zip(&mut cpus) {
                let what = format!("{:?} [{rows}, {cols}] x {tokens}, {}", q.packed, cpu.kernels());
                close(&what, &floats(&want), &floats(got), cols as f32 * 25.6, 1e-7);
                assert_eq!(*got, all[0], "{what}: not bit-identical");
                let t = rng.random_range(0..tokens);
                assert_eq!(product(cpu, t, 1), got[t * stride..][..stride], "{what}: token {t} alone");
            }
        }
    }
}

/// A token's product does not depend on other tokens, nor on the number of threads or streams.
#[test]
fn matmul_is_bit_identical_in_any_batch() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    // the second has more activations than the kernels process at once
    let shapes = [(53, 96, 27), (9, 8224, 63)];
    for (dtype, (rows, cols, tokens)) in types().flat_map(|t| shapes.map(|shape| (t, shape))) {
        let bytes = weight(&mut rng, dtype, rows, cols);
        let w = Weight { dtype, rows, cols, bytes: &bytes[1..] };
        let x = random(&mut rng, tokens * cols, 2.0);
        let mut results = cpus().into_iter().chain([scalar()]).map(|mut cpu| {
            let mut all = vec![f32::NAN; tokens * rows];
            cpu.matmul(w, MatRef::new(&x, tokens, 0, cols, cols), MatMut::new(&mut all, tokens, 0, rows, rows), false);
            for t in 0..tokens {
                let mut one = vec![f32::NAN; rows];
                let x = MatRef::new(&x[t * cols..], 1, 0, cols, cols);
                cpu.matmul(w, x, MatMut::new(&mut one, 1, 0, rows, rows), false);
                assert_eq!(one, all[t * rows..][..rows], "{dtype:?}, token {t}");
            }
            (cpu.kernels(), all)
        });
        let first = results.next().unwrap();
        for other in results.filter(|r| r.0 == first.0) {
            assert_eq!(first, other, "{dtype:?}: threads change the result");
        }
    }
}

#[test]
fn gated_matmul_equals_its_three_steps() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for (tokens, rows, cols) in [(1, 1, 32), (1, 701, 96), (3, 77, 64), (50, 130, 32)] {
        let types: Vec<_> = types().collect();
        let pick = [0, 1].map(|_| types[rng.random_range(0..types.len())]);
        let bytes = pick.map(|dtype| weight(&mut rng, dtype, rows, cols));
        let [g, u] = [0, 1].map(|i| Weight { dtype: pick[i], rows, cols, bytes: &bytes[i][1..] });
        let x = random(&mut rng, tokens * cols, 1.0);
        let x = MatRef::new(&x, tokens, 0, cols, cols);
        for mut cpu in cpus().into_iter().chain([scalar()]) {
            let product = |cpu: &mut Cpu, w| {
                output(tokens * rows, |out| cpu.matmul(w, x, MatMut::new(out, tokens, 0, rows, rows), false))
            };
            let (gate, mut want) = (product(&mut cpu, g), product(&mut cpu, u));
            let want_mut = MatMut::new(&mut want, tokens, 0, rows, rows);
            cpu.silu_mul(MatRef::new(&gate, tokens, 0, rows, rows), want_mut);
            let mut room = vec![f32::NAN; tokens * rows];
            let got = output(tokens * rows, |out| {
                let room = MatMut::new(&mut room, tokens, 0, rows, rows);
                cpu.gated_matmul([g, u], x, room, MatMut::new(out, tokens, 0, rows, rows));
            });
            assert_eq!(got, want, "{pick:?} {tokens} x {rows} x {cols}, {}", cpu.kernels());
        }
    }
}

#[test]
fn norms_and_activations() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for _ in 0..200 {
            let (n, tokens) = (rng.random_range(1..150), rng.random_range(1..6));
            let size = *[1e-3, 1.0, 30.0].get(rng.random_range(0..3)).unwrap();
            let a = random(&mut rng, tokens * n, size);
            let b = random(&mut rng, tokens * n, size);
            let (ga, gb) = (random(&mut rng, n, 2.0), random(&mut rng, n, 2.0));
            let [am, bm] = [&a, &b].map(|v| MatRef::new(v, tokens, 0, n, n));
            let [want, got] = [&mut reference, cpu].map(|cpu| {
                fn m(out: &mut [f32], n: usize) -> MatMut<'_> {
                    MatMut::new(out, out.len() / n, 0, n, n)
                }
                [
                    output(tokens * n, |out| cpu.rms_norm(am, &ga, 1e-6, m(out, n))),
                    output(tokens * n, |out| cpu.fuse(am, &ga, bm, &gb, 1e-6, m(out, n))),
                    output(tokens * n, |out| {
                        out.copy_from_slice(&a);
                        cpu.head_norm(m(out, n), &ga, 1e-6);
                    }),
                    output(tokens * n, |out| {
                        out.copy_from_slice(&b);
                        cpu.silu_mul(am, m(out, n));
                    }),
                    output(tokens * n, |out| {
                        out.copy_from_slice(&a);
                        cpu.relu2(m(out, n));
                    }),
                ]
            });
            // Norms have outputs of magnitude gain, whatever the input; the other tolerances are relative to the value.
            let cases = [("rms_norm", 1.0), ("fuse", 1.0), ("head_norm", 1.0), ("silu_mul", 0.0), ("relu2", 0.0)];
            for ((want, got), (what, scale)) in want.iter().zip(&got).zip(cases) {
                close(&format!("{what} {tokens} x {n}"), want, got, scale, 2e-6);
            }
        }
    }
}

#[test]
fn silu_far_from_zero_stays_finite() {
    for cpu in cpus().iter_mut().chain([&mut scalar()]) {
        let gate = [-1e30f32, -200.0, -88.5, -87.0, 87.0, 88.5, 200.0, 1e30, 0.0];
        let n = gate.len();
        let mut out = vec![1.0; n];
        cpu.silu_mul(MatRef::new(&gate, 1, 0, n, n), MatMut::new(&mut out, 1, 0, n, n));
        for (x, y) in gate.iter().zip(&out) {
            let want = x.max(0.0);
            assert!((y - want).abs() <= 1e-6 * want + 1e-7, "{}: silu({x}) = {y}", cpu.kernels());
        }
    }
}

#[test]
fn rope() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for _ in 0..100 {
            let (dim, heads, tokens) = (2 * rng.random_range(1..40), rng.random_range(1..6), rng.random_range(1..6));
            let n = heads * dim;
            let x = random(&mut rng, tokens * n, 3.0);
            let angles = random(&mut rng, tokens * dim / 2, 3.0);
            let (cos, sin): (Vec<_>, Vec<_>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let [want, got] = [&mut reference, cpu].map(|cpu| {
                output(tokens * n, |out| {
                    out.copy_from_slice(&x);
                    cpu.rope(MatMut::new(out, tokens, 0, n, n), dim, &cos, &sin);
                })
            });
            close("rope", &want, &got, 1.0, 1e-6);
        }
    }
}

#[test]
fn f16_conversion_rounds_to_nearest() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for cpu in cpus().iter_mut().chain([&mut scalar()]) {
        let mut x: Vec<f32> = (0..20_011).map(|_| f32::from_bits(rng.random())).filter(|v| !v.is_nan()).collect();
        x.extend((0..20_000).map(|_| rng.random_range(-70000.0..70000.0f32)));
        x.extend((0..20_000).map(|_| rng.random_range(-1e-4..1e-4f32)));
        // every tie between two half floats
        x.extend((0..0x7c00u16).map(|h| {
            (f16::from_bits(h).to_f32() + f16::from_bits(h + 1).to_f32()) / 2.0 * if h & 1 == 0 { 1.0 } else { -1.0 }
        }));
        let n = x.len();
        let mut got = vec![0; n];
        cpu.to_f16(MatRef::new(&x, 1, 0, n, n), &mut got);
        for (v, bits) in x.iter().zip(got) {
            assert_eq!(bits, f16::from_f32(*v).to_bits(), "{}: {v:e}", cpu.kernels());
        }
    }
}

/// Two tokens over three rows, head by head: prefetching must not read beyond them (detected by AddressSanitizer).
#[test]
fn attention_stays_within_its_rows() {
    const ROWS: usize = 3;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for cpu in &mut cpus() {
        let (heads, key_dim, value_dim) = (5, 40, 72);
        let [q, k, v] = [2 * key_dim, ROWS * key_dim, ROWS * value_dim].map(|n| random(&mut rng, n * heads, 1.0));
        let own = |first, rows| {
            [KvSpan::default(), KvSpan::default(), KvSpan::default(), KvSpan { chunk: true, first, rows }]
        };
        let args = Attention {
            q: MatRef::new(&q, 2, 0, heads * key_dim, heads * key_dim),
            heads,
            kv_heads: heads,
            key_dim,
            value_dim,
            cache: [KvRows::F32(&[]); 2],
            chunk: [KvRows::F32(&k), KvRows::F32(&v)],
            visible: &[own(0, ROWS - 1), own(0, ROWS)],
            position: 0,
        };
        let n = heads * value_dim;
        let [want, got] =
            [&mut scalar(), cpu].map(|cpu| output(2 * n, |out| cpu.attention(&args, MatMut::new(out, 2, 0, n, n))));
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 1e-5, "{got} is not {want}");
        }
    }
}

#[test]
fn attention() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for round in 0..120 {
            let (kv_heads, group) = (rng.random_range(1..4), rng.random_range(1..12));
            let blocks = round % 3 == 0;
            let (key_dim, value_dim) = if blocks {
                (32 * rng.random_range(1..4), 32 * rng.random_range(1..5))
            } else {
                (rng.random_range(1..70), rng.random_range(1..140))
            };
            // a single token uses the decode kernel
            let (rows, tokens) = if round % 4 < 2 {
                (rng.random_range(20..900), 1)
            } else {
                (rng.random_range(20..200), rng.random_range(1..20))
            };
            let heads = kv_heads * group;
            let q = random(&mut rng, tokens * heads * key_dim, 3.0);
            let kv = [0; 4].map(|_| random(&mut rng, rows * kv_heads * key_dim.max(value_dim), 1.0));
            let halves = kv.each_ref().map(|v| v.iter().map(|v| f16::from_f32(*v).to_bits()).collect::<Vec<_>>());
            let as_f16 = round % 2 == 0;
            // random codes, with scales for values of the same magnitude
            let mut bytes = kv.each_ref().map(|v| (0..v.len() / 32 * 34).map(|_| rng.random()).collect::<Vec<u8>>());
            for block in bytes.iter_mut().flat_map(|v| v.chunks_exact_mut(34)) {
                let scale = f16::from_f32(rng.random_range(-1.0..1.0) / 127.0);
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
            let at = |i: usize| match (blocks, as_f16) {
                (true, _) => KvRows::Q8_0(&bytes[i]),
                (_, true) => KvRows::F16(&halves[i]),
                (_, false) => KvRows::F32(&kv[i]),
            };
            // meta tokens, two spans of the ring, and rows of the chunk
            let prefix = KvSpan { chunk: false, first: 0, rows: rng.random_range(0..rows / 2) };
            let (old, new) = (rng.random_range(0..=rows / 4), rng.random_range(0..=rows / 4));
            let first = rows - rows / 4;
            let mut gone = 0; // rows outside the window of later tokens
            let visible: Vec<[KvSpan; 4]> = (0..tokens)
                .map(|t| {
                    gone += if t > 0 && rng.random_bool(0.7) { rng.random_range(0..=(old + new) / 2) } else { 0 };
                    let lost = gone.min(old + new);
                    let (from_old, from_new) = (lost.min(old), lost - lost.min(old));
                    let begin = if lost == old + new { (gone - lost).min(rows - tokens) } else { 0 };
                    [
                        prefix,
                        KvSpan { chunk: false, first: first + from_old, rows: old - from_old },
                        KvSpan { chunk: false, first: from_new, rows: new - from_new },
                        KvSpan { chunk: true, first: begin, rows: rng.random_range(1..=rows - begin) },
                    ]
                })
                .collect();
            let args = Attention {
                q: MatRef::new(&q, tokens, 0, heads * key_dim, heads * key_dim),
                heads,
                kv_heads,
                key_dim,
                value_dim,
                cache: [at(0), at(1)],
                chunk: [at(2), at(3)],
                visible: &visible,
                position: old + new + rng.random_range(0..300),
            };
            let n = heads * value_dim;
            let [want, got] = [&mut reference, cpu]
                .map(|cpu| output(tokens * n, |out| cpu.attention(&args, MatMut::new(out, tokens, 0, n, n))));
            close(&format!("attention, group {group}, keys {key_dim}, values {value_dim}"), &want, &got, 1.0, 2e-5);
        }
    }
}

#[test]
fn convolution() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for _ in 0..150 {
            let (channels, taps, tokens) = (rng.random_range(1..120), rng.random_range(1..11), rng.random_range(1..40));
            let (u, weight) = (random(&mut rng, tokens * (channels + 2), 2.0), random(&mut rng, channels * taps, 1.0));
            let bias = random(&mut rng, channels, 1.0);
            let state = random(&mut rng, (taps - 1) * channels, 1.0);
            let args = Conv {
                u: MatRef::new(&u, tokens, 1, channels, channels + 2),
                weight: &weight,
                bias: rng.random_bool(0.5).then_some(&bias),
            };
            let [want, got] = [&mut reference, cpu].map(|cpu| {
                let mut carried = Vec::new();
                let out = output(tokens * channels, |out| {
                    carried = output(state.len(), |now| {
                        cpu.conv_silu(&args, &state, now, MatMut::new(out, tokens, 0, channels, channels));
                    });
                });
                (out, carried)
            });
            close("conv", &want.0, &got.0, 1.0, 2e-6);
            assert_eq!(want.1, got.1, "conv state");
        }
    }
}

#[test]
fn selective_scan() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut reference = scalar();
    for cpu in &mut cpus() {
        for _ in 0..150 {
            let (channels, tokens) = (rng.random_range(1..100), rng.random_range(1..40));
            let states = if rng.random_bool(0.4) { 16 } else { rng.random_range(1..70) };
            let stride = channels + 1;
            let [dt, u, gate] = [8.0, 1.0, 5.0].map(|size| random(&mut rng, tokens * stride, size));
            let bc = random(&mut rng, tokens * (2 * states + 3), 1.0);
            let (dt_bias, d) = (random(&mut rng, channels, 3.0), random(&mut rng, channels, 1.0));
            let a: Vec<f32> = (0..channels * states).map(|_| -rng.random_range(1e-3..20.0f32)).collect();
            let h = random(&mut rng, channels * states, 1.0);
            let [dt, u, gate] = [&dt, &u, &gate].map(|v| MatRef::new(v, tokens, 1, channels, stride));
            let args = Scan {
                dt,
                dt_bias: &dt_bias,
                u,
                gate,
                b: MatRef::new(&bc, tokens, 1, states, 2 * states + 3),
                c: MatRef::new(&bc, tokens, states + 2, states, 2 * states + 3),
                a: &a,
                d: &d,
            };
            let [want, got] = [&mut reference, cpu].map(|cpu| {
                let mut carried = Vec::new();
                let out = output(tokens * channels, |out| {
                    carried = output(h.len(), |now| {
                        cpu.scan(&args, &h, now, MatMut::new(out, tokens, 0, channels, channels));
                    });
                });
                (out, carried)
            });
            close("scan", &want.0, &got.0, states as f32, 3e-6);
            close("scan state", &want.1, &got.1, 1.0, 3e-6);
        }
    }
}

/// Converts ggml's blocks to groups of eight interleaved rows.
fn interleave(q: &Quantized, bytes: &[u8], rows: usize) -> Vec<u8> {
    let size = q.parts.iter().sum::<usize>() + q.codes;
    let row = bytes.len() / rows;
    let pieces: Vec<usize> = q.parts.iter().copied().chain(std::iter::repeat_n(4, q.codes / 4)).collect();
    let mut out = vec![0; rows.next_multiple_of(8) * row];
    for (i, block) in bytes.chunks_exact(size).enumerate() {
        let (r, start) = (i / (row / size), i % (row / size) * size);
        let mut at = 0;
        for (i, &len) in pieces.iter().enumerate() {
            let to = &mut out[r / 8 * 8 * row + 8 * (start + at) + r % 8 * len..][..len];
            if len == 4 && i < q.parts.len() {
                // bit c of byte j is the fifth bit of column 4c + j
                for column in 0..32 {
                    to[column % 4] |= (block[at + column / 8] >> (column % 8) & 1) << (column / 4);
                }
            } else {
                to.copy_from_slice(&block[at..at + len]);
            }
            at += len;
        }
    }
    out
}

/// Extreme codes, scales and activations cause no overflow.
#[test]
fn extreme_products_do_not_overflow() {
    for q in &QUANTIZED {
        for (codes, fifth, sign) in [
            (0u8, 0u8, 1.0f32),
            (0xff, 0xff, 1.0),
            (0, 0, -1.0),
            (0xff, 0xff, -1.0),
            (0x80, 0, -1.0),
            (0x7f, 0xff, 1.0),
        ] {
            let (rows, cols) = (8, 64);
            let mut bytes = Vec::new();
            for _ in 0..cols / 32 {
                for (i, &part) in q.parts.iter().enumerate() {
                    (0..8).for_each(|_| match part {
                        1 => bytes.push(128),
                        2 => bytes.extend(f16::from_f32([1.0, -4.0][i]).to_le_bytes()),
                        _ => bytes.extend([fifth; 4]),
                    });
                }
                bytes.extend(std::iter::repeat_n(codes, 8 * q.codes));
            }
            let w = Weight { dtype: q.packed, rows, cols, bytes: &bytes };
            let x = vec![127.0 * sign; cols];
            let product = |cpu: &mut Cpu| {
                let mut out = vec![f32::NAN; rows];
                cpu.matmul(w, MatRef::new(&x, 1, 0, cols, cols), MatMut::new(&mut out, 1, 0, rows, rows), false);
                out
            };
            let want = product(&mut scalar());
            for cpu in &mut cpus() {
                close(&format!("{:?}, codes {codes:x}", q.packed), &want, &product(cpu), 1.0, 1e-6);
            }
        }
    }
}

/// int8 products are exact, and their sums are added in a fixed order: all vector instruction sets and both layouts are
/// bit-identical.
#[test]
fn simd_sets_and_layouts_are_bit_identical() {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    for q in &QUANTIZED {
        let (plain, packed) = (q.plain, q.packed);
        for tokens in [1, 4, 5, 6, 7, 13] {
            let (rows, cols) = (rng.random_range(1..70), 32 * rng.random_range(1..12));
            let bytes = weight(&mut rng, plain, rows, cols);
            let interleaved = interleave(q, &bytes[1..], rows);
            let x = random(&mut rng, tokens * cols, 2.0);
            let both = [(plain, &bytes[1..]), (packed, &interleaved[..])];
            let mut all = cpus().into_iter().flat_map(|mut cpu| {
                let x = MatRef::new(&x, tokens, 0, cols, cols);
                both.map(|(dtype, bytes)| {
                    let w = Weight { dtype, rows, cols, bytes };
                    let out =
                        output(tokens * rows, |out| cpu.matmul(w, x, MatMut::new(out, tokens, 0, rows, rows), false));
                    (cpu.kernels(), dtype, out.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                })
            });
            let Some((name, _, first)) = all.next() else { return };
            all.for_each(|(other, dtype, out)| {
                assert_eq!(first, out, "{dtype:?} x {tokens}: {other} differs from {name} on {plain:?}");
            });
        }
    }
}
