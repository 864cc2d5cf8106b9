//! The CPU as a backend: an adapter from memory parts to the kernels' matrices.

mod kv;

use std::{num::NonZeroUsize, time::Duration};

use bytemuck::allocation::try_zeroed_vec;
use hymba_kernels_cpu::{Attention, Conv, KvRows, Mat, MatMut, Scan, Weight, WeightType};

use self::kv::Kv;
use super::{Angles, Backend, Heads, KvSpan, Part, PartMut, ScanInput, Visible, metal::Shared};
use crate::{
    Error, Result,
    format::{CacheType, DType, Matrix, Vector, packed::Packing},
    model::weights::Layer,
};

const GPUS: &str = "the CPU is given a GPU's memory";

/// Values in main memory.
pub enum Memory {
    /// Floats.
    F32(Vec<f32>),
    /// Keys or values.
    Kv(Kv),
    /// Shared with a GPU, whose operations alone use it.
    Shared(Shared),
}

impl Memory {
    /// The values of F32 memory.
    ///
    /// # Panics
    /// If it is of another kind, or a GPU is still at work: see [`Backend::finish`].
    pub fn f32(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::Shared(memory) => memory.f32(),
            _ => panic!("activations are f32"),
        }
    }

    fn f32_mut(&mut self) -> &mut [f32] {
        match self {
            Self::F32(values) => values,
            _ => panic!("activations are f32"),
        }
    }

    fn rows(&self) -> KvRows<'_> {
        match self {
            Self::Kv(kv) => kv.view(),
            _ => panic!("attention reads keys and values"),
        }
    }
}

/// The CPU with its threads.
pub struct Cpu(hymba_kernels_cpu::Cpu);

impl Cpu {
    /// The fastest kernels this CPU has, on `threads` threads. `HYMBA_KERNELS=scalar` asks for the plain reference.
    pub fn new(threads: NonZeroUsize) -> Self {
        let wanted = std::env::var("HYMBA_KERNELS").ok();
        let kernels = hymba_kernels_cpu::Kernels::all().into_iter().find(|k| Some(k.name()) == wanted.as_deref());
        let kernels = kernels.unwrap_or_else(hymba_kernels_cpu::Kernels::best);
        Self(hymba_kernels_cpu::Cpu::with_kernels(kernels, threads))
    }

    /// Threads at work.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// The instruction set at work.
    pub fn kernels(&self) -> &'static str {
        self.0.kernels()
    }

    /// 8-bit and f32 multiply-adds a second that these threads do from registers: the best of `rounds` runs.
    pub fn rates(&mut self, rounds: usize) -> [f64; 2] {
        [self.0.int8_rate(rounds), self.0.float_rate(rounds)]
    }

    /// Bytes a second that these threads read from `bytes`: the best of `rounds` passes.
    pub fn read_bandwidth(&mut self, bytes: &[u8], rounds: usize) -> f64 {
        self.0.read_bandwidth(bytes, rounds)
    }
}

fn no_memory(bytes: usize) -> Error {
    Error::Request(format!(
        "there is no memory for {:.1} GB of cache and activations; ask for a shorter context (-c)",
        bytes as f64 / 1e9
    ))
}

/// The largest magnitude in some rows, or infinity, or NaN, whose bits come last.
fn largest<'a>(rows: usize, row: impl Fn(usize) -> &'a [f32]) -> f32 {
    let bits = |x: &[f32]| x.iter().fold(0, |most: i32, v| most.max((v.to_bits() & 0x7fff_ffff) as i32));
    f32::from_bits((0..rows).fold(0, |most, t| most.max(bits(row(t)))) as u32)
}

fn mat<'a>(p: &Part<'a, Memory>) -> Mat<'a> {
    Mat::new(p.memory.f32(), p.rows, p.start, p.cols, p.stride)
}

fn mat_mut<'a>(p: PartMut<'a, Memory>) -> MatMut<'a> {
    MatMut::new(p.memory.f32_mut(), p.rows, p.start, p.cols, p.stride)
}

fn weight(m: &Matrix) -> Weight<'_> {
    use WeightType::*;
    let [plain, packed] = match m.dtype {
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
    };
    let dtype = if m.packing == Packing::X8 { packed } else { plain };
    Weight { dtype, rows: m.rows, cols: m.cols, bytes: &m.data }
}

impl Backend for Cpu {
    type Memory = Memory;

    fn zeros(&self, len: usize) -> Result<Memory> {
        try_zeroed_vec(len).map(Memory::F32).map_err(|()| no_memory(CacheType::F32.size(len)))
    }

    fn kv_rows(&self, kind: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Memory> {
        let bytes = kind.size(rows.saturating_mul(heads * dim));
        Kv::new(kind, rows, heads, dim).map(Memory::Kv).ok_or_else(|| no_memory(bytes))
    }

    fn clear(&mut self, memory: &mut Memory) {
        match memory {
            Memory::F32(values) => values.fill(0.0),
            Memory::Kv(kv) => kv.clear(),
            Memory::Shared(_) => panic!("{GPUS}"),
        }
    }

    fn upload(&mut self, values: &[f32], memory: &mut Memory, at: usize) {
        match memory {
            Memory::F32(to) => to[at..at + values.len()].copy_from_slice(values),
            Memory::Kv(kv) => {
                let width = kv.width();
                kv.store(&mut self.0, Mat::new(values, values.len() / width, 0, width, width), at / width);
            }
            Memory::Shared(_) => panic!("{GPUS}"),
        }
    }

    fn download(&mut self, memory: &Memory, len: usize) -> Vec<f32> {
        match memory {
            Memory::F32(values) => values[..len].to_vec(),
            Memory::Kv(kv) => kv.load(len / kv.width()),
            Memory::Shared(_) => panic!("{GPUS}"),
        }
    }

    fn copy_rows(&mut self, from: (&Memory, usize), to: (&mut Memory, usize), rows: usize, width: usize) {
        match (from.0, to.0) {
            (Memory::F32(a), Memory::F32(b)) => {
                b[to.1 * width..][..rows * width].copy_from_slice(&a[from.1 * width..][..rows * width]);
            }
            (Memory::Kv(a), Memory::Kv(b)) => b.copy(a, from.1..from.1 + rows, to.1),
            _ => panic!("rows are copied between memories of one kind"),
        }
    }

    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, Memory>) {
        let mut out = mat_mut(out);
        for (i, &row) in rows.iter().enumerate() {
            table.row(row as usize, out.row_mut(i));
        }
    }

    fn matmul(&mut self, w: &Matrix, x: Part<'_, Memory>, out: PartMut<'_, Memory>, accumulate: bool) {
        self.0.matmul(weight(w), mat(&x), mat_mut(out), accumulate);
    }

    fn gated_matmul(
        &mut self,
        matrices: [&Matrix; 2],
        x: Part<'_, Memory>,
        gate: PartMut<'_, Memory>,
        out: PartMut<'_, Memory>,
    ) {
        self.0.gated_matmul(matrices.map(weight), mat(&x), mat_mut(gate), mat_mut(out));
    }

    fn add_bias(&mut self, x: PartMut<'_, Memory>, bias: &Vector) {
        self.0.add_bias(mat_mut(x), bias);
    }

    fn rms_norm(&mut self, x: Part<'_, Memory>, gain: &Vector, eps: f32, out: PartMut<'_, Memory>) {
        self.0.rms_norm(mat(&x), gain, eps, mat_mut(out));
    }

    fn head_norm(&mut self, x: PartMut<'_, Memory>, gain: &Vector, eps: f32) {
        self.0.head_norm(mat_mut(x), gain, eps);
    }

    fn rope(&mut self, x: PartMut<'_, Memory>, dim: usize, angles: &Angles) {
        self.0.rope(mat_mut(x), dim, &angles.cos, &angles.sin);
    }

    fn store_rows(&mut self, x: Part<'_, Memory>, out: &mut Memory) {
        match out {
            Memory::Kv(kv) => kv.fill(&mut self.0, mat(&x)),
            _ => panic!("keys and values are stored as such"),
        }
    }

    fn attention(
        &mut self,
        heads: Heads,
        q: Part<'_, Memory>,
        cache: [&Memory; 2],
        chunk: [&Memory; 2],
        visible: Visible<'_>,
        out: PartMut<'_, Memory>,
    ) {
        let span = |s: KvSpan| hymba_kernels_cpu::Run { chunk: s.chunk, first: s.first, rows: s.rows };
        let position = visible.position;
        let visible: Vec<_> = visible.spans.iter().map(|spans| spans.map(span)).collect();
        let args = Attention {
            q: mat(&q),
            heads: heads.query,
            kv_heads: heads.kv,
            key_dim: heads.key_dim,
            value_dim: heads.value_dim,
            cache: cache.map(Memory::rows),
            chunk: chunk.map(Memory::rows),
            visible: &visible,
            position,
        };
        self.0.attention(&args, mat_mut(out));
    }

    fn conv_silu(
        &mut self,
        u: Part<'_, Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut Memory,
        out: PartMut<'_, Memory>,
    ) {
        let args = Conv { u: mat(&u), weight, bias: bias.map(|b| &**b) };
        self.0.conv_silu(&args, state.f32_mut(), mat_mut(out));
    }

    fn scan(&mut self, input: ScanInput<'_, Memory>, layer: &Layer, h: &mut Memory, out: PartMut<'_, Memory>) {
        let args = Scan {
            dt: mat(&input.dt),
            dt_bias: &layer.dt_bias,
            u: mat(&input.u),
            gate: mat(&input.gate),
            b: mat(&input.b),
            c: mat(&input.c),
            a: &layer.a,
            d: &layer.d,
        };
        self.0.scan(&args, h.f32_mut(), mat_mut(out));
    }

    fn fuse(
        &mut self,
        a: (Part<'_, Memory>, &Vector),
        b: (Part<'_, Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, Memory>,
    ) {
        self.0.fuse(mat(&a.0), a.1, mat(&b.0), b.1, eps, mat_mut(out));
    }

    fn relu2(&mut self, x: PartMut<'_, Memory>) {
        self.0.relu2(mat_mut(x));
    }

    fn largest(&mut self, x: Part<'_, Memory>) -> f32 {
        let x = mat(&x);
        largest(x.rows(), |t| x.row(t))
    }

    fn measure_waiting(&mut self, on: bool) {
        self.0.measure_waiting(on);
    }

    fn waited(&self) -> Duration {
        self.0.waited()
    }
}
