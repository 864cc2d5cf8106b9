//! Each kernel at the sizes of Hymba-1.5B, on one thread, for every instruction set that this CPU has.
//!
//!     cargo bench -p hymba-kernels-cpu -- 'avx2/matmul'
//!
//! What a rate is worth is seen against `limit`: multiply-adds from registers, measured the same way.

use std::{num::NonZeroUsize, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hymba_kernels_cpu::{Attention, Conv, Cpu, Kernels, KvRows, KvSpan, MatMut, MatRef, Scan, Weight, WeightType};

const HIDDEN: usize = 1600;
const INNER: usize = 3200;
const STATES: usize = 16;
const TAPS: usize = 4;
const META: usize = 128;
const WINDOW: usize = 1024;

/// Values between -1 and 1 that look random.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Any bytes are weights; of these, none is a scale so small that arithmetic slows.
fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 26) as u8 + 56).collect()
}

fn matmul(c: &mut Criterion, cpu: &mut Cpu) {
    use WeightType::*;
    let mut group = c.benchmark_group(format!("{}/matmul", cpu.kernels()));
    let types = [
        (HK_Q4_0X8, 18),
        (HK_IQ4_NLX8, 18),
        (HK_MXFP4X8, 17),
        (HK_Q4_1X8, 20),
        (HK_Q5_0X8, 22),
        (HK_Q5_1X8, 24),
        (HK_Q8_0X8, 34),
        (HK_Q4_0, 18),
        (HK_IQ4_NL, 18),
        (HK_Q5_0, 22),
        (HK_Q8_0, 34),
        (HK_F16, 64),
    ];
    for (dtype, bits) in types {
        for tokens in [1, 16, 256] {
            let rows = 256; // they stay in L2, so that the kernel is measured instead of memory
            let weights = bytes(rows * HIDDEN / 32 * bits);
            let w = Weight { dtype, rows, cols: HIDDEN, bytes: &weights };
            let (x, mut out) = (values(tokens * HIDDEN), vec![0.0; tokens * rows]);
            if tokens == 1 {
                group.throughput(Throughput::Bytes(weights.len() as u64));
            } else {
                group.throughput(Throughput::Elements((rows * HIDDEN * tokens) as u64));
            }
            group.bench_function(BenchmarkId::new(format!("{dtype:?}"), tokens), |b| {
                b.iter(|| {
                    let x = MatRef::new(&x, tokens, 0, HIDDEN, HIDDEN);
                    cpu.matmul(w, x, MatMut::new(&mut out, tokens, 0, rows, rows), false);
                });
            });
        }
    }
}

fn attention(c: &mut Criterion, cpu: &mut Cpu) {
    let mut group = c.benchmark_group(format!("{}/attention", cpu.kernels()));
    let (heads, kv_heads, key_dim, value_dim) = (25, 5, 64, 128);
    let cases = [
        ("decode", 1, META + WINDOW),
        ("decode", 1, META + 8192),
        ("prefill", 256, META + 256),
        ("deep", 16, META + 8192),
    ];
    for (name, tokens, rows) in cases {
        let half = |width: usize| vec![0x2e66u16; rows * kv_heads * width];
        let (k, v) = (half(key_dim), half(value_dim));
        let q = values(tokens * heads * key_dim);
        let none = KvSpan::default();
        let visible: Vec<_> = (0..tokens)
            .map(|t| {
                let run = |chunk, first, rows| KvSpan { chunk, first, rows };
                [run(false, 0, META), run(false, META, rows - tokens - META), none, run(true, 0, t + 1)]
            })
            .collect();
        let seen: usize = visible.iter().flatten().map(|r| r.rows).sum();
        let args = Attention {
            q: MatRef::new(&q, tokens, 0, heads * key_dim, heads * key_dim),
            heads,
            kv_heads,
            key_dim,
            value_dim,
            cache: [KvRows::F16(&k), KvRows::F16(&v)],
            chunk: [KvRows::F16(&k), KvRows::F16(&v)],
            visible: &visible,
            position: rows - tokens,
        };
        let mut out = vec![0.0; tokens * heads * value_dim];
        group.throughput(Throughput::Elements((seen * heads * (key_dim + value_dim)) as u64)); // multiply-adds
        group.bench_function(BenchmarkId::new(name, rows), |b| {
            b.iter(|| cpu.attention(&args, MatMut::new(&mut out, tokens, 0, heads * value_dim, heads * value_dim)));
        });
    }
}

fn mamba(c: &mut Criterion, cpu: &mut Cpu) {
    let mut group = c.benchmark_group(format!("{}/mamba", cpu.kernels()));
    for tokens in [1, 256] {
        let x = values(tokens * INNER);
        let x = MatRef::new(&x, tokens, 0, INNER, INNER);
        let bc = values(tokens * 2 * STATES);
        let [b, c] = [0, STATES].map(|start| MatRef::new(&bc, tokens, start, STATES, 2 * STATES));
        let a: Vec<f32> = (0..INNER * STATES).map(|i| -((i % STATES + 1) as f32)).collect();
        let (bias, d) = (vec![-4.6; INNER], vec![1.0; INNER]);
        let scan = Scan { dt: x, dt_bias: &bias, u: x, gate: x, b, c, a: &a, d: &d };
        let [mut h, mut next] = [(); 2].map(|()| vec![0.0; INNER * STATES]);
        let mut out = vec![0.0; tokens * INNER];
        group.throughput(Throughput::Elements((tokens * INNER) as u64));
        group.bench_function(BenchmarkId::new("scan", tokens), |bench| {
            bench.iter(|| {
                cpu.scan(&scan, &h, &mut next, MatMut::new(&mut out, tokens, 0, INNER, INNER));
                std::mem::swap(&mut h, &mut next);
            });
        });
        let weight = values(INNER * TAPS);
        let conv = Conv { u: x, weight: &weight, bias: Some(&bias) };
        let [mut state, mut next] = [(); 2].map(|()| vec![0.0; (TAPS - 1) * INNER]);
        group.bench_function(BenchmarkId::new("conv", tokens), |bench| {
            bench.iter(|| {
                cpu.conv_silu(&conv, &state, &mut next, MatMut::new(&mut out, tokens, 0, INNER, INNER));
                std::mem::swap(&mut state, &mut next);
            });
        });
    }
}

fn elementwise(c: &mut Criterion, cpu: &mut Cpu) {
    let mut group = c.benchmark_group(format!("{}/elementwise", cpu.kernels()));
    group.throughput(Throughput::Elements(INNER as u64));
    let (x, gain) = (values(INNER), vec![1.0; INNER]);
    let x = MatRef::new(&x, 1, 0, INNER, INNER);
    let mut out = vec![0.0; INNER];
    group.bench_function("rms_norm", |b| {
        b.iter(|| cpu.rms_norm(x, &gain, 1e-6, MatMut::new(&mut out, 1, 0, INNER, INNER)));
    });
    group.bench_function("fuse", |b| {
        b.iter(|| cpu.fuse(x, &gain, x, &gain, 1e-6, MatMut::new(&mut out, 1, 0, INNER, INNER)));
    });
    group.bench_function("silu_mul", |b| {
        b.iter(|| {
            out.fill(1.0);
            cpu.silu_mul(x, MatMut::new(&mut out, 1, 0, INNER, INNER));
        });
    });
    let mut half = vec![0; INNER];
    group.bench_function("to_f16", |b| b.iter(|| cpu.to_f16(x, &mut half)));
}

/// Multiply-adds from registers.
fn limit(c: &mut Criterion, cpu: &mut Cpu) {
    let mut group = c.benchmark_group(format!("{}/limit", cpu.kernels()));
    group.throughput(Throughput::Elements(Cpu::RATE_MACS as u64));
    group.bench_function("int8", |b| b.iter(|| cpu.int8_rate(1)));
    group.bench_function("f32", |b| b.iter(|| cpu.float_rate(1)));
}

fn all(c: &mut Criterion) {
    for kernels in Kernels::all().into_iter().filter(|k| k.name() != "scalar") {
        let cpu = &mut Cpu::with_kernels(kernels, NonZeroUsize::MIN);
        limit(c, cpu);
        matmul(c, cpu);
        attention(c, cpu);
        mamba(c, cpu);
        elementwise(c, cpu);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(700)).sample_size(20);
    targets = all
}
criterion_main!(benches);
