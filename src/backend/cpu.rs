//! The CPU backend: converts buffers and views to the kernels' matrices.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool, time::Duration};

use bytemuck::allocation::try_zeroed_vec;
use hymba_kernels_cpu::{self as kernels, Conv, Scan, Weight, WeightType};

use super::{Backend, Buffer, KvSpan, MatMut, MatRef, Memory, Op, kv::Kv};
use crate::{
    Error, Result,
    format::{CacheType, DType, Matrix, packed::Packing},
};

/// The environment variable that selects the kernels; ones that this CPU cannot run are ignored.
pub const KERNELS: &str = "HYMBA_KERNELS";

/// The CPU with its thread pool.
pub struct Cpu(kernels::Cpu);

impl Cpu {
    /// Returns the fastest kernels of this CPU on `threads` threads. `HYMBA_KERNELS=scalar` selects the reference
    /// kernels.
    pub fn new(threads: NonZeroUsize) -> Self {
        let wanted = std::env::var(KERNELS).ok();
        let kernels = hymba_kernels_cpu::Kernels::all().into_iter().find(|k| Some(k.name()) == wanted.as_deref());
        let kernels = kernels.unwrap_or_else(hymba_kernels_cpu::Kernels::best);
        Self(kernels::Cpu::with_kernels(kernels, threads))
    }

    /// Returns the names of the kernels that this CPU can run, fastest first.
    pub fn all_kernels() -> Vec<&'static str> {
        hymba_kernels_cpu::Kernels::all().into_iter().map(hymba_kernels_cpu::Kernels::name).collect()
    }

    /// Returns every set of kernels that this CPU can run, on `threads` threads, fastest first.
    pub fn all(threads: NonZeroUsize) -> Vec<Self> {
        let kernels = hymba_kernels_cpu::Kernels::all().into_iter();
        kernels.map(|kernels| Self(kernels::Cpu::with_kernels(kernels, threads))).collect()
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// Returns the name of the instruction set in use.
    pub fn kernels(&self) -> &'static str {
        self.0.kernels()
    }

    /// Measures 8-bit and f32 multiply-adds per second on registers: the best of `rounds` runs.
    pub fn rates(&mut self, rounds: usize) -> [f64; 2] {
        [self.0.int8_rate(rounds), self.0.float_rate(rounds)]
    }

    /// Measures the read bandwidth over `bytes` in bytes per second: the best of `rounds` passes, interrupted by
    /// `cancel`.
    pub fn read_bandwidth(&mut self, bytes: &[u8], rounds: usize, cancel: &AtomicBool) -> Result<f64> {
        let best = self.0.read_bandwidth(bytes, rounds, cancel);
        Error::check_cancelled(cancel).map(|()| best)
    }

    /// Starts or stops measuring how long the calling thread waits for the others.
    pub(super) fn measure_waiting(&mut self, on: bool) {
        self.0.measure_waiting(on);
    }

    /// Returns the measured waiting time.
    pub(super) fn waited(&self) -> Duration {
        self.0.waited()
    }
}

fn no_memory(bytes: usize) -> Error {
    Error::OutOfMemory { wanted: bytes as u64, available: None }
}

/// Returns the largest magnitude in some rows; infinity or NaN if there is one, since their bits compare as larger.
fn max_abs<'a>(rows: usize, row: impl Fn(usize) -> &'a [f32]) -> f32 {
    let bits = |x: &[f32]| x.iter().fold(0, |max: i32, v| max.max((v.to_bits() & 0x7fff_ffff) as i32));
    f32::from_bits((0..rows).fold(0, |max, t| max.max(bits(row(t)))) as u32)
}

fn mat<'a>(m: MatRef<'a>) -> kernels::MatRef<'a> {
    kernels::MatRef::new(m.buffer.f32(), m.rows, m.start, m.cols, m.stride)
}

fn mat_mut<'a>(m: MatMut<'a>) -> kernels::MatMut<'a> {
    kernels::MatMut::new(m.buffer.f32_mut(), m.rows, m.start, m.cols, m.stride)
}

/// Returns the kernels' weight types for consecutive and for interleaved rows.
pub(super) fn weight_types(dtype: DType) -> [WeightType; 2] {
    use WeightType::*;
    match dtype {
        DType::F32 => [HK_F32; 2],
        DType::F16 => [HK_F16; 2],
        DType::BF16 => [HK_BF16; 2],
        DType::Q8_0 => [HK_Q8_0, HK_Q8_0X8],
        DType::Q5_1 => [HK_Q5_1, HK_Q5_1X8],
        DType::Q5_0 => [HK_Q5_0, HK_Q5_0X8],
        DType::Q4_1 => [HK_Q4_1, HK_Q4_1X8],
        DType::Q4_0 => [HK_Q4_0, HK_Q4_0X8],
        DType::Iq4Nl => [HK_IQ4_NL, HK_IQ4_NLX8],
        DType::Mxfp4 => [HK_MXFP4, HK_MXFP4X8],
    }
}

fn weight(m: &Matrix) -> Weight<'_> {
    let [plain, packed] = weight_types(m.dtype);
    let dtype = if m.packing == Packing::X8 { packed } else { plain };
    Weight { dtype, rows: m.rows, cols: m.cols, bytes: &m.data }
}

fn attention(cpu: &mut kernels::Cpu, a: super::Attention<'_>) {
    let span = |s: KvSpan| kernels::KvSpan { chunk: s.chunk, first: s.first, rows: s.rows };
    let visible: Vec<_> = a.visible.iter().map(|spans| spans.map(span)).collect();
    let args = kernels::Attention {
        q: mat(a.q),
        heads: a.heads.query,
        kv_heads: a.heads.kv,
        key_dim: a.heads.key_dim,
        value_dim: a.heads.value_dim,
        cache: a.cache.map(|buffer| buffer.kv().view()),
        chunk: a.chunk.map(|buffer| buffer.kv().view()),
        visible: &visible,
        position: a.position,
    };
    cpu.attention(&args, mat_mut(a.out));
}

impl Backend for Cpu {
    fn run(&mut self, op: Op<'_>) {
        let cpu = &mut self.0;
        match op {
            Op::Gather { table, rows, out } => {
                let mut out = mat_mut(out);
                for (i, &row) in rows.iter().enumerate() {
                    table.row(row as usize, out.row_mut(i));
                }
            }
            Op::MatMul { w, x, out, accumulate, .. } => cpu.matmul(weight(w), mat(x), mat_mut(out), accumulate),
            Op::GatedMatMul { w, x, gate, out, .. } => {
                cpu.gated_matmul(w.map(weight), mat(x), mat_mut(gate), mat_mut(out));
            }
            Op::AddBias { x, bias } => cpu.add_bias(mat_mut(x), bias),
            Op::RmsNorm { x, gain, eps, out } => cpu.rms_norm(mat(x), gain, eps, mat_mut(out)),
            Op::HeadNorm { x, gain, eps } => cpu.head_norm(mat_mut(x), gain, eps),
            Op::Rope { x, dim, angles } => cpu.rope(mat_mut(x), dim, &angles.cos, &angles.sin),
            Op::StoreRows { x, out: Buffer::F32(out) } => {
                let rows = out.chunks_exact_mut(x.cols.max(1)).enumerate().take(x.rows);
                let x = mat(x);
                rows.for_each(|(t, row)| row.copy_from_slice(x.row(t)));
            }
            Op::StoreRows { x, out } => out.kv_mut().fill(cpu, mat(x)),
            Op::CopyRows { from: (from, a), to: (to, b), rows, width } => match (from, to) {
                (Buffer::F32(from), Buffer::F32(to)) => {
                    to[b * width..][..rows * width].copy_from_slice(&from[a * width..][..rows * width]);
                }
                (from, to) => to.kv_mut().copy(from.kv(), a..a + rows, b),
            },
            Op::Attention(args) => attention(cpu, args),
            Op::Conv { u, weight, bias, state, out } => {
                let args = Conv { u: mat(u), weight, bias: bias.map(|b| &**b) };
                cpu.conv_silu(&args, state.from.f32(), state.to.f32_mut(), mat_mut(out));
            }
            Op::Scan { input, weights: w, state, out } => {
                let args = Scan {
                    dt: mat(input.dt),
                    dt_bias: w.dt_bias,
                    u: mat(input.u),
                    gate: mat(input.gate),
                    b: mat(input.b),
                    c: mat(input.c),
                    a: w.a,
                    d: w.d,
                };
                cpu.scan(&args, state.from.f32(), state.to.f32_mut(), mat_mut(out));
            }
            Op::Fuse { a, b, eps, out } => cpu.fuse(mat(a.0), a.1, mat(b.0), b.1, eps, mat_mut(out)),
            Op::Relu2 { x } => cpu.relu2(mat_mut(x)),
        }
    }

    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32> {
        let x = mat(x);
        Some(max_abs(x.rows(), |t| x.row(t)))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

const GPUS: &str = "the CPU works on main memory";

impl Memory for Cpu {
    fn zeros(&self, len: usize) -> Result<Buffer> {
        try_zeroed_vec(len).map(Buffer::F32).map_err(|()| no_memory(CacheType::F32.size(len)))
    }

    fn kv_rows(&self, cache: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Buffer> {
        let bytes = cache.size(rows.saturating_mul(heads * dim));
        Kv::new(cache, rows, heads, dim).map(Buffer::Kv).ok_or_else(|| no_memory(bytes))
    }

    fn clear(&mut self, buffer: &mut Buffer) {
        match buffer {
            Buffer::F32(values) => values.fill(0.0),
            Buffer::Kv(kv) => kv.clear(),
            Buffer::Gpu(_) => panic!("{GPUS}"),
        }
    }

    fn upload(&mut self, values: &[f32], buffer: &mut Buffer, at: usize) {
        match buffer {
            Buffer::F32(to) => to[at..at + values.len()].copy_from_slice(values),
            Buffer::Kv(kv) => {
                let width = kv.width();
                kv.store(&mut self.0, kernels::MatRef::new(values, values.len() / width, 0, width, width), at / width);
            }
            Buffer::Gpu(_) => panic!("{GPUS}"),
        }
    }

    fn download(&mut self, buffer: &Buffer, len: usize) -> Vec<f32> {
        match buffer {
            Buffer::F32(values) => values[..len].to_vec(),
            Buffer::Kv(kv) => kv.load(len / kv.width()),
            Buffer::Gpu(_) => panic!("{GPUS}"),
        }
    }
}
