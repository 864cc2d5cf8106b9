//! Every kernel propagates NaN and infinity, instead of returning finite values for them.

use std::num::NonZeroUsize;

use hymba_kernels_cpu::{Attention, Conv, Cpu, Kernels, KvRows, KvSpan, MatMut, MatRef, Scan, Weight, WeightType};

const N: usize = 64;

fn ones(n: usize) -> Vec<f32> {
    (0..n).map(|i| 0.5 + (i % 7) as f32 / 8.0).collect()
}

/// Runs `f` for every instruction set, with NaN (or infinity, if `infinite`) at for_each_position of `inputs` positions.
fn for_each_position(inputs: usize, infinite: bool, mut f: impl FnMut(&mut Cpu, &[f32]) -> Vec<f32>) {
    for kernels in Kernels::all() {
        let mut cpu = Cpu::with_kernels(kernels, NonZeroUsize::MIN);
        let poisons = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for at in 0..inputs {
            for poison in &poisons[..if infinite { 4 } else { 2 }] {
                let mut x = ones(inputs);
                x[at] = *poison;
                let y = f(&mut cpu, &x);
                assert!(!y.iter().all(|v| v.is_finite()), "{}: {poison} at {at} gives finite output", kernels.name());
            }
        }
        assert!(f(&mut cpu, &ones(inputs)).iter().all(|v| v.is_finite()), "{}", kernels.name());
    }
}

fn row(x: &[f32]) -> MatRef<'_> {
    MatRef::new(x, 1, 0, x.len(), x.len())
}

fn output(n: usize, f: impl FnOnce(MatMut<'_>)) -> Vec<f32> {
    let mut out = vec![0.0; n];
    f(MatMut::new(&mut out, 1, 0, n, n));
    out
}

#[test]
fn matmul() {
    // one row of ones: Q8_0 in both orders, F32
    let block = |codes: u8| [&0x3c00u16.to_le_bytes()[..], &[codes; 32]].concat();
    let plain: Vec<u8> = (0..8 * N / 32).flat_map(|_| block(1)).collect();
    let group = || [0x3c00u16.to_le_bytes().repeat(8), vec![1; 256]].concat();
    let packed: Vec<u8> = (0..N / 32).flat_map(|_| group()).collect();
    let floats: Vec<u8> = (0..8 * N).flat_map(|_| 1f32.to_le_bytes()).collect();
    for (dtype, bytes) in
        [(WeightType::HK_Q8_0, &plain), (WeightType::HK_Q8_0X8, &packed), (WeightType::HK_F32, &floats)]
    {
        for_each_position(N, true, |cpu, x| {
            output(8, |out| cpu.matmul(Weight { dtype, rows: 8, cols: N, bytes }, row(x), out, false))
        });
    }
}

#[test]
fn norms_and_activations() {
    let gain = ones(N);
    for_each_position(N, false, |cpu, x| output(N, |out| cpu.rms_norm(row(x), &gain, 1e-6, out)));
    for_each_position(N, false, |cpu, x| output(N, |out| cpu.fuse(row(x), &gain, row(&gain), &gain, 1e-6, out)));
    for_each_position(N + 3, false, |cpu, x| {
        let mut up = x.to_vec();
        cpu.relu2(MatMut::new(&mut up, 1, 0, N + 3, N + 3));
        up
    });
    for_each_position(N + 3, false, |cpu, x| {
        let mut up = ones(N + 3);
        cpu.silu_mul(row(x), MatMut::new(&mut up, 1, 0, N + 3, N + 3));
        up
    });
}

#[test]
fn attention() {
    // query, keys and values of nine rows, one head of 8
    let (dim, rows) = (8, 9);
    let empty = [0f32; 0];
    for_each_position(dim + 2 * rows * dim, false, |cpu, x| {
        let (q, kv) = x.split_at(dim);
        let (k, v) = kv.split_at(rows * dim);
        let empty_span = KvSpan { chunk: false, first: 0, rows: 0 };
        let args = Attention {
            q: row(q),
            heads: 1,
            kv_heads: 1,
            key_dim: dim,
            value_dim: dim,
            cache: [KvRows::F32(&empty), KvRows::F32(&empty)],
            chunk: [KvRows::F32(k), KvRows::F32(v)],
            visible: &[[empty_span, empty_span, empty_span, KvSpan { chunk: true, first: 0, rows }]],
            position: 0,
        };
        output(dim, |out| cpu.attention(&args, out))
    });
}

#[test]
fn mamba() {
    let (channels, states, taps) = (11, 16, 4);
    for_each_position(channels + channels * taps, false, |cpu, x| {
        let (u, weight) = x.split_at(channels);
        let (state, mut next) = (vec![0.5; (taps - 1) * channels], vec![0.0; (taps - 1) * channels]);
        output(channels, |out| cpu.conv_silu(&Conv { u: row(u), weight, bias: None }, &state, &mut next, out))
    });
    // dt, u, gate, B, C, h
    for_each_position(3 * channels + 2 * states + channels * states, false, |cpu, x| {
        let (dt, rest) = x.split_at(channels);
        let (u, rest) = rest.split_at(channels);
        let (gate, rest) = rest.split_at(channels);
        let (b, rest) = rest.split_at(states);
        let (c, h) = rest.split_at(states);
        let (zeros, a, mut next) = (vec![0.0; channels], vec![-1.0; channels * states], h.to_vec());
        let args =
            Scan { dt: row(dt), dt_bias: &zeros, u: row(u), gate: row(gate), b: row(b), c: row(c), a: &a, d: &zeros };
        output(channels, |out| cpu.scan(&args, h, &mut next, out))
    });
}
