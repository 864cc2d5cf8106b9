//! The GPU of a Mac as a backend: an adapter from memory parts to the shaders' views. The device may also be another
//! that runs the same shaders.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use half::f16;
pub use hymba_kernels_metal::system::names;
use hymba_kernels_metal::{Attention, Buffer, Conv, Device, DeviceError, Format, Gpu, Scan, View, Weight, system};

use super::{Angles, Backend, Heads, KvSpan, Part, PartMut, ScanInput, Visible, cpu::Memory};
use crate::{
    Error, Result,
    format::{Blob, CacheType, DType, Matrix, Vector, packed::Packing},
    model::{Config, Weights, weights::Layer},
};

/// The default GPU of this machine.
pub fn open() -> Result<Box<dyn Device>> {
    system::open().map_err(failed)
}

fn failed(error: DeviceError) -> Error {
    match error {
        DeviceError::Failed(_) => Error::Gpu(error.to_string()),
        _ => Error::Request(error.to_string()),
    }
}

/// Values in memory that the CPU and the GPU share.
pub struct Shared {
    buffer: Buffer,
    kind: CacheType,
    len: usize,
    /// Is the GPU at work?
    busy: Arc<AtomicBool>,
}

const REFUSED: &str = "memory of this kind was refused when it was asked for";

impl Shared {
    /// The values.
    ///
    /// # Panics
    /// If they are not F32, or the GPU is at work.
    pub fn f32(&self) -> &[f32] {
        assert!(self.kind == CacheType::F32, "activations are f32");
        assert!(!self.busy.load(Ordering::Relaxed), "the GPU is still at work");
        // SAFETY: the buffer has room for as many; the GPU is done, and operations that write it borrow it mutably.
        unsafe { std::slice::from_raw_parts(self.buffer.contents().cast(), self.len) }
    }

    fn bytes(&self, values: usize) -> usize {
        self.kind.size(values)
    }
}

/// A GPU with a model's weights.
pub struct Metal {
    gpu: Gpu,
    busy: Arc<AtomicBool>,
    /// What the GPU's buffers look at; let go of after them.
    _weights: Blob,
}

impl Metal {
    /// `device` with the weights of a model, which it sees where they are.
    pub fn new(device: Box<dyn Device>, weights: &Weights, config: &Config) -> Result<Self> {
        if config.state > Gpu::MOST_STATES {
            return Err(Error::Request(format!(
                "the GPU's kernels hold {} states a channel, and this model has {}; use --backend cpu",
                Gpu::MOST_STATES,
                config.state
            )));
        }
        let blob = weights.token_embd.data.whole();
        // SAFETY: the blob lives longer than the GPU's buffers, being dropped after them, and its bytes never change.
        let gpu = unsafe { Gpu::new(device, &blob) }.map_err(failed)?;
        Ok(Self { gpu, busy: Arc::default(), _weights: blob })
    }

    /// What the GPU is called.
    pub fn name(&self) -> String {
        self.gpu.name()
    }

    /// The GPU, which now has something to do.
    fn gpu(&mut self) -> &mut Gpu {
        self.busy.store(true, Ordering::Relaxed);
        &mut self.gpu
    }

    fn allocate(&self, kind: CacheType, len: usize) -> Result<Memory> {
        let buffer = self.gpu.allocate(kind.size(len)).map_err(failed)?;
        Ok(Memory::Shared(Shared { buffer, kind, len, busy: self.busy.clone() }))
    }

    /// Waits; an error stays, and is told by [`Backend::finish`].
    fn wait(&mut self) {
        let _ = Backend::finish(self);
    }
}

fn shared(memory: &Memory) -> &Shared {
    match memory {
        Memory::Shared(memory) => memory,
        _ => panic!("the GPU is given the CPU's memory"),
    }
}

fn view<'a>(p: &Part<'a, Memory>) -> View<'a> {
    let buffer = &shared(p.memory).buffer;
    View { buffer, rows: p.rows, start: p.start, cols: p.cols, stride: p.stride }
}

fn view_mut<'a>(p: &'a PartMut<'_, Memory>) -> View<'a> {
    let buffer = &shared(p.memory).buffer;
    View { buffer, rows: p.rows, start: p.start, cols: p.cols, stride: p.stride }
}

fn weight(m: &Matrix) -> Weight<'_> {
    let [plain, interleaved] = match m.dtype {
        DType::F32 => [Format::F32; 2],
        DType::F16 => [Format::F16; 2],
        DType::BF16 => [Format::BF16; 2],
        DType::Q8_0 => [Format::Q8_0, Format::Q8_0X8],
        DType::Q5_1 => [Format::Q5_1, Format::Q5_1X8],
        DType::Q5_0 => [Format::Q5_0, Format::Q5_0X8],
        DType::Q4_1 => [Format::Q4_1, Format::Q4_1X8],
        DType::Q4_0 => [Format::Q4_0, Format::Q4_0X8],
        DType::Iq4Nl => [Format::Iq4Nl, Format::Iq4NlX8],
        DType::Mxfp4 => [Format::Mxfp4, Format::Mxfp4X8],
    };
    let format = if m.packing == Packing::X8 { interleaved } else { plain };
    Weight { format, rows: m.rows, cols: m.cols, bytes: &m.data }
}

impl Backend for Metal {
    type Memory = Memory;

    fn zeros(&self, len: usize) -> Result<Memory> {
        self.allocate(CacheType::F32, len)
    }

    fn kv_rows(&self, kind: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Memory> {
        if kind == CacheType::Q8_0 {
            let what = "a KV cache of type q8_0 is the CPU's alone: take --cache-type f16, or --backend cpu";
            return Err(Error::Request(what.into()));
        }
        self.allocate(kind, rows.saturating_mul(heads * dim))
    }

    fn clear(&mut self, memory: &mut Memory) {
        self.gpu().clear(&shared(memory).buffer);
    }

    fn upload(&mut self, values: &[f32], memory: &mut Memory, at: usize) {
        self.wait();
        let to = shared(memory);
        assert!(at + values.len() <= to.len, "an upload reaches beyond the end of its memory");
        let start = to.buffer.contents().wrapping_add(to.bytes(at));
        // SAFETY: the values fit, the GPU is done, and the memory is borrowed mutably.
        unsafe {
            match to.kind {
                CacheType::F32 => std::ptr::copy_nonoverlapping(values.as_ptr(), start.cast(), values.len()),
                CacheType::F16 => {
                    let to = std::slice::from_raw_parts_mut(start.cast::<f16>(), values.len());
                    to.iter_mut().zip(values).for_each(|(to, v)| *to = f16::from_f32(*v));
                }
                CacheType::Q8_0 => unreachable!("{REFUSED}"),
            }
        }
    }

    fn download(&mut self, memory: &Memory, len: usize) -> Vec<f32> {
        self.wait();
        let from = shared(memory);
        assert!(len <= from.len, "a download reaches beyond the end of its memory");
        match from.kind {
            CacheType::F32 => from.f32()[..len].to_vec(),
            CacheType::F16 => {
                // SAFETY: as many values are there, the GPU is done, and nobody writes borrowed memory.
                let values = unsafe { std::slice::from_raw_parts(from.buffer.contents().cast::<f16>(), len) };
                values.iter().map(|v| v.to_f32()).collect()
            }
            CacheType::Q8_0 => unreachable!("{REFUSED}"),
        }
    }

    fn copy_rows(&mut self, from: (&Memory, usize), to: (&mut Memory, usize), rows: usize, width: usize) {
        let (a, b) = (shared(from.0), shared(to.0));
        assert!(a.kind == b.kind, "rows are copied between memories of one kind");
        let (source, target) = ((&a.buffer, a.bytes(from.1 * width)), (&b.buffer, b.bytes(to.1 * width)));
        self.gpu().copy(source, target, a.bytes(rows * width));
    }

    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, Memory>) {
        self.gpu().gather(weight(table), rows, view_mut(&out));
    }

    fn matmul(&mut self, w: &Matrix, x: Part<'_, Memory>, out: PartMut<'_, Memory>, accumulate: bool) {
        self.gpu().matmul(weight(w), view(&x), view_mut(&out), accumulate);
    }

    fn gated_matmul(
        &mut self,
        [g, u]: [&Matrix; 2],
        x: Part<'_, Memory>,
        gate: PartMut<'_, Memory>,
        out: PartMut<'_, Memory>,
    ) {
        self.gpu().matmul(weight(g), view(&x), view_mut(&gate), false);
        self.gpu().matmul(weight(u), view(&x), view_mut(&out), false);
        self.gpu().silu_mul(view_mut(&gate), view_mut(&out));
    }

    fn add_bias(&mut self, x: PartMut<'_, Memory>, bias: &Vector) {
        self.gpu().add_bias(view_mut(&x), bias);
    }

    fn rms_norm(&mut self, x: Part<'_, Memory>, gain: &Vector, eps: f32, out: PartMut<'_, Memory>) {
        self.gpu().rms_norm(view(&x), gain, eps, view_mut(&out));
    }

    fn head_norm(&mut self, x: PartMut<'_, Memory>, gain: &Vector, eps: f32) {
        self.gpu().head_norm(view_mut(&x), gain, eps);
    }

    fn rope(&mut self, x: PartMut<'_, Memory>, dim: usize, angles: &Angles) {
        self.gpu().rope(view_mut(&x), dim, &angles.cos, &angles.sin);
    }

    fn store_rows(&mut self, x: Part<'_, Memory>, out: &mut Memory) {
        let out = shared(out);
        self.gpu().store_rows(view(&x), &out.buffer, out.kind == CacheType::F16);
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
        let span = |r: KvSpan| hymba_kernels_metal::Run {
            first: r.first as u32,
            rows: r.rows as u32,
            chunk: u32::from(r.chunk),
            unused: 0,
        };
        let visible: Vec<_> = visible.spans.iter().map(|spans| spans.map(span)).collect();
        let args = Attention {
            q: view(&q),
            heads: heads.query,
            kv_heads: heads.kv,
            key_dim: heads.key_dim,
            value_dim: heads.value_dim,
            cache: cache.map(|m| &shared(m).buffer),
            chunk: chunk.map(|m| &shared(m).buffer),
            half: shared(cache[0]).kind == CacheType::F16,
            visible: &visible,
        };
        self.gpu().attention(&args, view_mut(&out));
    }

    fn conv_silu(
        &mut self,
        u: Part<'_, Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut Memory,
        out: PartMut<'_, Memory>,
    ) {
        let args = Conv { u: view(&u), weight, bias: bias.map(|b| &**b) };
        self.gpu().conv_silu(&args, &shared(state).buffer, view_mut(&out));
    }

    fn scan(&mut self, input: ScanInput<'_, Memory>, layer: &Layer, h: &mut Memory, out: PartMut<'_, Memory>) {
        let args = Scan {
            dt: view(&input.dt),
            dt_bias: &layer.dt_bias,
            u: view(&input.u),
            gate: view(&input.gate),
            b: view(&input.b),
            c: view(&input.c),
            a: &layer.a,
            d: &layer.d,
        };
        self.gpu().scan(&args, &shared(h).buffer, view_mut(&out));
    }

    fn fuse(
        &mut self,
        a: (Part<'_, Memory>, &Vector),
        b: (Part<'_, Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, Memory>,
    ) {
        self.gpu().fuse((view(&a.0), a.1), (view(&b.0), b.1), eps, view_mut(&out));
    }

    fn relu2(&mut self, x: PartMut<'_, Memory>) {
        self.gpu().relu2(view_mut(&x));
    }

    fn finish(&mut self) -> Result<()> {
        let done = self.gpu.finish();
        // An error comes after waiting too: the GPU does nothing more.
        self.busy.store(false, Ordering::Relaxed);
        done.map_err(failed)
    }

    fn measure_waiting(&mut self, _: bool) {}

    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}
