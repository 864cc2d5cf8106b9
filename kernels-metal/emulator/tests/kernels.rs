//! Every shader against the scalar reference of the CPU kernels: random shapes, odd sizes, poisoned outputs. Products
//! are compared with double-precision sums of the same decoded weights and float activations, which the shaders do not
//! round; the CPU's quantized products round activations to int8, so they cannot serve as reference.
//!
//! On the emulator every memory access is checked too. `HYMBA_METAL_CUDA` selects another device; see cuda/.

mod common;

use common::*;
use half::f16;
use hymba_kernels_cpu as cpu;
use hymba_kernels_metal::{Attention, Conv, Format, KvSpan, Scan, View};
use rand::RngExt;
use std::num::NonZeroUsize;

fn reference() -> cpu::Cpu {
    cpu::Cpu::with_kernels(cpu::Kernels::scalar(), NonZeroUsize::MIN)
}

fn mat(values: &[f32], cols: usize) -> cpu::MatRef<'_> {
    cpu::MatRef::new(values, values.len() / cols, 0, cols, cols)
}

fn mat_mut(values: &mut [f32], cols: usize) -> cpu::MatMut<'_> {
    cpu::MatMut::new(values, values.len() / cols, 0, cols, cols)
}

#[test]
fn matmul() {
    let mut rng = rng(1);
    for format in FORMATS {
        let quantized = format as u32 >= Format::Q8_0 as u32;
        // a hundred times slower where the emulator itself is emulated
        let emulated = std::env::var_os("HYMBA_TEST_RUNNER").is_some();
        for &tokens in if emulated { &[1, 3, 33][..] } else { &[1, 1, 2, 3, 5, 31, 33, 70] } {
            let rows = rng.random_range(1..150usize);
            let cols = if quantized { 32 * rng.random_range(1..20usize) } else { rng.random_range(1..300usize) };
            for aligned in [true, false] {
                let what = format!("{format:?} {rows}x{cols}, {tokens} tokens, aligned {aligned}");
                let (bytes, decoded) = weight(&mut rng, format, rows, cols);
                let mut weights = Weights::default();
                let w = weights.add(&bytes);
                let mut m = weights.machine();
                let x = random(&mut rng, tokens * cols, 1.0);
                let before = random(&mut rng, tokens * rows, 1.0);
                let input = m.matrix(&mut rng, tokens, cols, aligned, &x);
                for accumulate in [false, true] {
                    let start = if accumulate { &before[..] } else { &[] };
                    let output = m.matrix(&mut rng, tokens, rows, false, start);
                    let w = matrix_weight(format, rows, cols, m.bytes(&w));
                    m.gpu.matmul(w, input.view(), output.view(), accumulate, false);
                    let got = m.read(&output);
                    let (mut want, mut sizes) = (Vec::new(), Vec::new());
                    for (t, x) in x.chunks(cols).enumerate() {
                        for (r, row) in decoded.chunks(cols).enumerate() {
                            let products = || row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b));
                            let more = if accumulate { f64::from(before[t * rows + r]) } else { 0.0 };
                            want.push((products().sum::<f64>() + more) as f32);
                            sizes.push(products().map(f64::abs).sum::<f64>() as f32);
                        }
                    }
                    close(&what, &got, &want, |i| sizes[i], 1e-6);
                }
            }
        }
    }
}

/// Tokens of a decode segment, with one or several reads of the weights.
#[test]
fn decode_segment_matmul_equals_single_tokens() {
    let mut rng = rng(11);
    for format in FORMATS {
        let quantized = format as u32 >= Format::Q8_0 as u32;
        let emulated = std::env::var_os("HYMBA_TEST_RUNNER").is_some();
        for &tokens in if emulated { &[3, 8][..] } else { &[2, 3, 4, 5, 7, 8, 11] } {
            let rows = rng.random_range(1..150usize);
            let cols = if quantized { 32 * rng.random_range(1..20usize) } else { rng.random_range(1..300usize) };
            let (bytes, _) = weight(&mut rng, format, rows, cols);
            let mut weights = Weights::default();
            let w = weights.add(&bytes);
            let mut m = weights.machine();
            let x = random(&mut rng, tokens * cols, 1.0);
            let input = m.matrix(&mut rng, tokens, cols, true, &x);
            let [output, alone] = [0; 2].map(|_| m.matrix(&mut rng, tokens, rows, false, &[]));
            let w = matrix_weight(format, rows, cols, m.bytes(&w));
            m.gpu.matmul(w, input.view(), output.view(), false, true);
            for t in 0..tokens {
                let [x, y] = [&input, &alone].map(|matrix| {
                    let view = matrix.view();
                    View { rows: 1, start: view.start + t * view.stride, ..view }
                });
                m.gpu.matmul(w, x, y, false, true);
            }
            assert_eq!(m.read(&output), m.read(&alone), "{format:?} {rows}x{cols}, {tokens} tokens");
        }
    }
}

#[test]
fn gather() {
    let mut rng = rng(2);
    for format in FORMATS {
        let quantized = format as u32 >= Format::Q8_0 as u32;
        for _ in 0..4 {
            let (rows, n) = (rng.random_range(1..40usize), rng.random_range(1..9usize));
            let cols = if quantized { 32 * rng.random_range(1..6usize) } else { rng.random_range(1..90usize) };
            let (bytes, decoded) = weight(&mut rng, format, rows, cols);
            let mut weights = Weights::default();
            let w = weights.add(&bytes);
            let mut m = weights.machine();
            let ids: Vec<u32> = (0..n).map(|_| rng.random_range(0..rows as u32)).collect();
            let out = m.matrix(&mut rng, n, cols, false, &[]);
            m.gpu.gather(matrix_weight(format, rows, cols, m.bytes(&w)), &ids, out.view());
            let want: Vec<f32> = ids.iter().flat_map(|&r| decoded[r as usize * cols..][..cols].to_vec()).collect();
            assert_eq!(m.read(&out), want, "{format:?}");
        }
    }
}

#[test]
fn norms() {
    let mut rng = rng(3);
    for _ in 0..12 {
        let (tokens, n) = (rng.random_range(1..5usize), rng.random_range(1..1300usize));
        let eps = 1e-6;
        let (x, y) = (random(&mut rng, tokens * n, 2.0), random(&mut rng, tokens * n, 2.0));
        let (gain_x, gain_y) = (random(&mut rng, n, 2.0), random(&mut rng, n, 2.0));
        let mut weights = Weights::default();
        let (gx, gy) = (weights.add_floats(&gain_x), weights.add_floats(&gain_y));
        let mut m = weights.machine();
        let (a, b) = (m.matrix(&mut rng, tokens, n, false, &x), m.matrix(&mut rng, tokens, n, false, &y));
        let mut want = vec![0.0; tokens * n];

        let out = m.matrix(&mut rng, tokens, n, false, &[]);
        m.gpu.rms_norm(a.view(), m.floats(&gx), eps, out.view());
        reference().rms_norm(mat(&x, n), &gain_x, eps, mat_mut(&mut want, n));
        close("rms_norm", &m.read(&out), &want, |_| 1.0, 1e-5);

        let out = m.matrix(&mut rng, tokens, n, false, &[]);
        m.gpu.fuse((a.view(), m.floats(&gx)), (b.view(), m.floats(&gy)), eps, out.view());
        reference().fuse(mat(&x, n), &gain_x, mat(&y, n), &gain_y, eps, mat_mut(&mut want, n));
        close("fuse", &m.read(&out), &want, |_| 1.0, 1e-5);

        // heads
        let (dim, heads) = (rng.random_range(1..140usize), rng.random_range(1..7usize));
        let x = random(&mut rng, tokens * heads * dim, 2.0);
        let gain = random(&mut rng, dim, 2.0);
        let mut weights = Weights::default();
        let g = weights.add_floats(&gain);
        let mut m = weights.machine();
        let out = m.matrix(&mut rng, tokens, heads * dim, false, &x);
        m.gpu.head_norm(out.view(), m.floats(&g), eps);
        let mut want = x.clone();
        reference().head_norm(mat_mut(&mut want, heads * dim), &gain, eps);
        close("head_norm", &m.read(&out), &want, |_| 1.0, 1e-5);
    }
}

#[test]
fn elementwise_operations() {
    let mut rng = rng(4);
    for _ in 0..10 {
        let (tokens, half, heads) = (rng.random_range(1..6usize), rng.random_range(1..40), rng.random_range(1..5));
        let n: usize = 2 * half * heads;
        let (x, y) = (random(&mut rng, tokens * n, 6.0), random(&mut rng, tokens * n, 6.0));
        let bias = random(&mut rng, n, 1.0);
        let mut weights = Weights::default();
        let b = weights.add_floats(&bias);
        let mut m = weights.machine();

        let angles = random(&mut rng, tokens * half, 3.0);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let out = m.matrix(&mut rng, tokens, n, false, &x);
        m.gpu.rope(out.view(), 2 * half, &cos, &sin);
        let mut want = x.clone();
        reference().rope(mat_mut(&mut want, n), 2 * half, &cos, &sin);
        close("rope", &m.read(&out), &want, |_| 6.0, 1e-6);

        let gate = m.matrix(&mut rng, tokens, n, false, &y);
        let out = m.matrix(&mut rng, tokens, n, false, &x);
        m.gpu.silu_mul(gate.view(), out.view());
        let mut want = x.clone();
        reference().silu_mul(mat(&y, n), mat_mut(&mut want, n));
        close("silu_mul", &m.read(&out), &want, |_| 0.0, 1e-6);

        let out = m.matrix(&mut rng, tokens, n, false, &x);
        m.gpu.relu2(out.view());
        let mut want = x.clone();
        reference().relu2(mat_mut(&mut want, n));
        assert_eq!(m.read(&out), want);

        let out = m.matrix(&mut rng, tokens, n, false, &x);
        m.gpu.add_bias(out.view(), m.floats(&b));
        let mut want = x.clone();
        reference().add_bias(mat_mut(&mut want, n), &bias);
        assert_eq!(m.read(&out), want);

        // to the cache: floats keep their bits, halves are rounded to nearest
        let from = m.matrix(&mut rng, tokens, n, false, &x);
        let rows = m.buffer(&vec![f32::NAN; tokens * n + 3]);
        m.gpu.store_rows(from.view(), &rows, false);
        m.gpu.finish().unwrap();
        assert_eq!(read(&rows, tokens * n), x);
        assert!(read(&rows, tokens * n + 3)[tokens * n..].iter().all(|v| v.is_nan()));
        let values: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * [1.0, 1e-4, 1e-7, 2e4][i % 4]).collect();
        let from = m.matrix(&mut rng, tokens, n, false, &values);
        m.gpu.store_rows(from.view(), &rows, true);
        m.gpu.finish().unwrap();
        let got = read(&rows, tokens * n);
        let got: &[u16] = &bytemuck::cast_slice(&got)[..tokens * n];
        let want: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
        assert_eq!(got, want);

        // copies
        let to = m.buffer(&vec![f32::NAN; tokens * n]);
        let count = rng.random_range(0..tokens * n);
        let (a, b) = (m.buffer(&x), rng.random_range(0..=tokens * n - count));
        m.gpu.copy((&a, 0), (&to, 4 * b), 4 * count);
        m.gpu.finish().unwrap();
        let got = read(&to, tokens * n);
        assert_eq!(got[b..b + count], x[..count]);
        assert!(got[..b].iter().chain(&got[b + count..]).all(|v| v.is_nan()));
        m.gpu.clear(&to);
        m.gpu.finish().unwrap();
        assert!(read(&to, tokens * n).iter().all(|v| v.to_bits() == 0));
    }
}

#[test]
fn convolution() {
    let mut rng = rng(5);
    for tokens in [1, 1, 2, 3, 4, 50] {
        for taps in 1..5 {
            let channels = rng.random_range(1..90usize);
            let (weight, bias) = (random(&mut rng, channels * taps, 1.0), random(&mut rng, channels, 1.0));
            let mut weights = Weights::default();
            let (w, b) = (weights.add_floats(&weight), weights.add_floats(&bias));
            let mut m = weights.machine();
            for with_bias in [true, false] {
                let state = random(&mut rng, (taps - 1) * channels, 2.0);
                let mut next = vec![0.0; state.len()];
                let u = random(&mut rng, tokens * channels, 2.0);
                let [gpu_state, gpu_next] = [&state, &next].map(|values| m.buffer(values));
                let input = m.matrix(&mut rng, tokens, channels, false, &u);
                let out = m.matrix(&mut rng, tokens, channels, false, &[]);
                let (w, b) = (m.floats(&w), m.floats(&b));
                let args = Conv { u: input.view(), weight: w, bias: with_bias.then_some(b) };
                m.gpu.conv_silu(&args, &gpu_state, &gpu_next, out.view());
                let got = m.read(&out);
                let mut want = vec![0.0; tokens * channels];
                let args = cpu::Conv { u: mat(&u, channels), weight: &weight, bias: with_bias.then_some(&bias) };
                reference().conv_silu(&args, &state, &mut next, mat_mut(&mut want, channels));
                close("conv_silu", &got, &want, |_| 1.0, 2e-6);
                assert_eq!(read(&gpu_next, next.len()), next, "{tokens} tokens, {taps} taps");
                assert_eq!(read(&gpu_state, state.len()), state, "{tokens} tokens, {taps} taps");
            }
        }
    }
}

#[test]
fn selective_scan() {
    let mut rng = rng(6);
    for tokens in [1, 2, 31, 63, 64, 65, 100, 160] {
        for states in [1, 3, 8, 16, 17, 32] {
            let channels = rng.random_range(1..30usize);
            let a: Vec<f32> = (0..channels * states).map(|_| -rng.random_range(0.01f32..4.0)).collect();
            let (d, dt_bias) = (random(&mut rng, channels, 1.0), random(&mut rng, channels, 3.0));
            let mut weights = Weights::default();
            let [wa, wd, wb] = [&a, &d, &dt_bias].map(|v| weights.add_floats(v));
            let mut m = weights.machine();
            let dt = random(&mut rng, tokens * channels, 4.0);
            let (u, gate) = (random(&mut rng, tokens * channels, 2.0), random(&mut rng, tokens * channels, 2.0));
            let bc = random(&mut rng, tokens * 2 * states, 1.0);
            let (h, mut next) = (random(&mut rng, channels * states, 1.0), vec![0.0; channels * states]);
            let [gpu_h, gpu_next] = [&h, &next].map(|values| m.buffer(values));
            let [gpu_dt, gpu_u, gpu_gate] = [&dt, &u, &gate].map(|v| m.matrix(&mut rng, tokens, channels, false, v));
            let gpu_bc = m.buffer(&bc);
            let part = |start| hymba_kernels_metal::View {
                buffer: &gpu_bc,
                rows: tokens,
                start,
                cols: states,
                stride: 2 * states,
            };
            let out = m.matrix(&mut rng, tokens, channels, false, &[]);
            let args = Scan {
                dt: gpu_dt.view(),
                dt_bias: m.floats(&wb),
                u: gpu_u.view(),
                gate: gpu_gate.view(),
                b: part(0),
                c: part(states),
                a: m.floats(&wa),
                d: m.floats(&wd),
            };
            m.gpu.scan(&args, &gpu_h, &gpu_next, out.view());
            let got = m.read(&out);
            let mut want = vec![0.0; tokens * channels];
            let cpu_part = |start| cpu::MatRef::new(&bc, tokens, start, states, 2 * states);
            let args = cpu::Scan {
                dt: mat(&dt, channels),
                dt_bias: &dt_bias,
                u: mat(&u, channels),
                gate: mat(&gate, channels),
                b: cpu_part(0),
                c: cpu_part(states),
                a: &a,
                d: &d,
            };
            reference().scan(&args, &h, &mut next, mat_mut(&mut want, channels));
            let what = format!("{tokens} tokens, {channels} channels of {states} states");
            close(&what, &got, &want, |_| 5.0, 2e-6);
            close(&what, &read(&gpu_next, next.len()), &next, |_| 5.0, 2e-6);
            assert_eq!(read(&gpu_h, h.len()), h, "{what}");
        }
    }
}

/// Converts rows `[rows, heads, dim]` to the CPU's layout `[heads, rows, dim]`.
fn by_head<T: Copy>(rows: &[T], heads: usize, dim: usize) -> Vec<T> {
    (0..heads)
        .flat_map(|head| rows.chunks(heads * dim).flat_map(move |row| &row[head * dim..][..dim]))
        .copied()
        .collect()
}

fn kv((values, bits): &(Vec<f32>, Vec<u16>), half: bool) -> cpu::KvRows<'_> {
    if half { cpu::KvRows::F16(bits) } else { cpu::KvRows::F32(values) }
}

#[test]
fn attention() {
    let mut rng = rng(7);
    let shapes =
        [(5, 1, 32, 64), (4, 2, 16, 32), (3, 3, 8, 8), (6, 2, 20, 12), (2, 2, 5, 7), (9, 1, 16, 24), (5, 5, 128, 128)];
    for (heads, kv_heads, key_dim, value_dim) in shapes {
        for tokens in [1, 3, 8, 9, 21] {
            for half in [true, false] {
                let meta = rng.random_range(0..20usize);
                let cache_rows = meta + rng.random_range(1..150usize);
                // a ring: the visible rows may end anywhere and wrap around
                let ring = cache_rows - meta;
                let (first, seen) = (rng.random_range(0..ring), rng.random_range(0..=ring));
                let before_end = seen.min(ring - first);
                let window = rng.random_range(1..=seen + tokens);
                let visible: Vec<[cpu::KvSpan; 4]> = (0..tokens)
                    .map(|t| {
                        // counted from the oldest row of the ring
                        let from = (seen + t + 1).saturating_sub(window);
                        let (gone, own) = (from.min(seen), from.saturating_sub(seen));
                        let (old, new) = (gone.min(before_end), gone.saturating_sub(before_end));
                        let run = |chunk, first, rows| cpu::KvSpan { chunk, first, rows };
                        [
                            run(false, 0, meta),
                            run(false, meta + first + old, before_end - old),
                            run(false, meta + new, seen - before_end - new),
                            run(true, own, t + 1 - own),
                        ]
                    })
                    .collect();
                let mut m = Weights::default().machine();
                let q = random(&mut rng, tokens * heads * key_dim, 2.0);
                let rows = |rng: &mut _, n: usize| {
                    let values = random(rng, n, 1.5);
                    let bits: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
                    (values, bits)
                };
                let [ck, cv, k, v] =
                    [(cache_rows, key_dim), (cache_rows, value_dim), (tokens, key_dim), (tokens, value_dim)]
                        .map(|(rows_n, dim)| rows(&mut rng, rows_n * kv_heads * dim));
                let buffer = |(values, bits): &(Vec<f32>, Vec<u16>)| {
                    let bytes: &[u8] = if half { bytemuck::cast_slice(bits) } else { bytemuck::cast_slice(values) };
                    let buffer = m.gpu.allocate(bytes.len()).unwrap();
                    // SAFETY: the buffer is new and has the size of the bytes.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.contents(), bytes.len()) };
                    buffer
                };
                let buffers = [&ck, &cv, &k, &v].map(buffer);
                let aligned = rng.random();
                let queries = m.matrix(&mut rng, tokens, heads * key_dim, aligned, &q);
                let out = m.matrix(&mut rng, tokens, heads * value_dim, false, &[]);
                let runs: Vec<[KvSpan; 4]> = visible
                    .iter()
                    .map(|runs| {
                        runs.map(|r| KvSpan {
                            first: r.first as u32,
                            rows: r.rows as u32,
                            chunk: u32::from(r.chunk),
                            unused: 0,
                        })
                    })
                    .collect();
                let args = Attention {
                    q: queries.view(),
                    heads,
                    kv_heads,
                    key_dim,
                    value_dim,
                    cache: [&buffers[0], &buffers[1]],
                    chunk: [&buffers[2], &buffers[3]],
                    half,
                    visible: &runs,
                    decode: false,
                };
                m.gpu.attention(&args, out.view());
                let got = m.read(&out);
                // in a decode segment every token is bit-identical to a pass of its own
                m.gpu.attention(&Attention { decode: true, ..args }, out.view());
                let together = m.read(&out);
                for t in 0..tokens {
                    let [q, one] = [queries.view(), out.view()];
                    let q = View { rows: 1, start: q.start + t * q.stride, ..q };
                    let one = View { rows: 1, start: one.start + t * one.stride, ..one };
                    m.gpu.attention(&Attention { q, visible: &runs[t..t + 1], decode: true, ..args }, one);
                }
                assert_eq!(m.read(&out), together, "{tokens} tokens, each alone");
                let kept = |(values, bits): &(Vec<f32>, Vec<u16>), dim| {
                    (by_head(values, kv_heads, dim), by_head(bits, kv_heads, dim))
                };
                let [ck, cv, k, v] =
                    [(ck, key_dim), (cv, value_dim), (k, key_dim), (v, value_dim)].map(|(rows, dim)| kept(&rows, dim));
                let args = cpu::Attention {
                    q: mat(&q, heads * key_dim),
                    heads,
                    kv_heads,
                    key_dim,
                    value_dim,
                    cache: [kv(&ck, half), kv(&cv, half)],
                    chunk: [kv(&k, half), kv(&v, half)],
                    visible: &visible,
                    position: seen,
                };
                let mut want = vec![0.0; tokens * heads * value_dim];
                reference().attention(&args, mat_mut(&mut want, heads * value_dim));
                let what = format!("{heads}/{kv_heads} heads of {key_dim}/{value_dim}, {tokens} tokens, half {half}");
                close(&what, &got, &want, |_| 1.0, 1e-5);
            }
        }
    }
}

/// A model larger than a buffer is mapped by several windows; every tensor is inside one.
#[test]
fn weights_larger_than_a_buffer() {
    let mut rng = rng(9);
    let (rows, cols) = (8, 64);
    let mut weights = Weights::default();
    let all: Vec<_> = (0..40)
        .map(|_| {
            let (bytes, decoded) = weight(&mut rng, Format::F16, rows, cols);
            (weights.add(&bytes), decoded)
        })
        .collect();
    let device = Box::new(hymba_metal_emulator::Emulator::with_longest_buffer(2 * rows * cols * 2));
    let mut m = weights.machine_on(device);
    for (w, decoded) in &all {
        let out = m.matrix(&mut rng, rows, cols, false, &[]);
        let ids: Vec<u32> = (0..rows as u32).collect();
        m.gpu.gather(matrix_weight(Format::F16, rows, cols, m.bytes(w)), &ids, out.view());
        assert_eq!(m.read(&out), *decoded);
    }
}
