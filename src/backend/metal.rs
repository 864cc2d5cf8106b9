//! The Metal backend: converts buffers and views to the shaders' views. The device may also be another one that runs
//! the same shaders.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use half::f16;
use hymba_kernels_metal::{Conv, Device, DeviceError, Format, Gpu, Scan, View, Weight, system};

use super::{Backend, Buffer, GpuBuffer, KvSpan, MatMut, MatRef, Memory, Op, RowSpan};
use crate::{
    Error, Result,
    format::{Blob, CacheType, DType, Matrix, packed::Packing},
};

fn failed(error: DeviceError) -> Error {
    match error {
        DeviceError::Failed(problem) => Error::Gpu(problem),
        DeviceError::OutOfMemory(bytes) => Error::GpuOutOfMemory(bytes),
        DeviceError::Missing(_) | DeviceError::Shaders(_) => Error::GpuUnsupported(error.to_string()),
    }
}

const REFUSED: &str = "a buffer of this type was refused when it was allocated";

/// A GPU with the weights of a model.
pub struct Metal {
    gpu: Gpu,
    busy: Arc<AtomicBool>,
    /// Referenced by the GPU's buffers, so dropped after them.
    _weights: Blob,
}

impl Metal {
    /// Returns the names of this machine's GPUs.
    pub fn names() -> Vec<String> {
        system::names()
    }

    /// Opens this machine's default GPU, see [`Metal::new`].
    pub fn open(weights: Blob, states: usize) -> Result<Self> {
        Self::new(system::open().map_err(failed)?, weights, states)
    }

    /// Returns `device` with the weights of a model with `states` SSM states per channel. The device reads the model
    /// file in place.
    pub fn new(device: Box<dyn Device>, weights: Blob, states: usize) -> Result<Self> {
        if states > Gpu::MAX_STATES {
            let max = Gpu::MAX_STATES;
            let problem =
                format!("the GPU's kernels support up to {max} states per channel, but this model has {states}");
            return Err(Error::GpuUnsupported(problem));
        }
        // SAFETY: the blob is dropped after the GPU's buffers, and its bytes never change.
        let gpu = unsafe { Gpu::new(device, &weights) }.map_err(failed)?;
        Ok(Self { gpu, busy: Arc::default(), _weights: weights })
    }

    /// Returns the GPU's name.
    pub fn name(&self) -> String {
        self.gpu.name()
    }

    fn allocate(&self, cache: CacheType, len: usize) -> Result<Buffer> {
        let buffer = self.gpu.allocate(cache.size(len)).map_err(failed)?;
        Ok(Buffer::Gpu(GpuBuffer { buffer, cache, len, busy: self.busy.clone() }))
    }

    /// Waits; an error is kept for [`Backend::finish`].
    fn wait(&mut self) {
        let _ = Backend::finish(self);
    }
}

fn view(m: MatRef<'_>) -> View<'_> {
    View { buffer: &m.buffer.gpu().buffer, rows: m.rows, start: m.start, cols: m.cols, stride: m.stride }
}

fn view_mut<'a>(m: &'a MatMut<'_>) -> View<'a> {
    View { buffer: &m.buffer.gpu().buffer, rows: m.rows, start: m.start, cols: m.cols, stride: m.stride }
}

/// Returns the shaders' formats for consecutive and for interleaved rows.
pub(super) fn formats(dtype: DType) -> [Format; 2] {
    match dtype {
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
    }
}

fn weight(m: &Matrix) -> Weight<'_> {
    let [plain, interleaved] = formats(m.dtype);
    let format = if m.packing == Packing::X8 { interleaved } else { plain };
    Weight { format, rows: m.rows, cols: m.cols, bytes: &m.data }
}

fn matmul(gpu: &mut Gpu, w: &Matrix, [x, out]: [View<'_>; 2], accumulate: bool, spans: &[RowSpan]) {
    let mut first = 0;
    for &RowSpan { rows, decode } in spans {
        let [x, out] = [x, out].map(|view| View { rows, start: view.start + first * view.stride, ..view });
        gpu.matmul(weight(w), x, out, accumulate, decode);
        first += rows;
    }
}

fn attention(gpu: &mut Gpu, a: &super::Attention<'_>) {
    let span = |s: KvSpan| hymba_kernels_metal::KvSpan {
        first: s.first as u32,
        rows: s.rows as u32,
        chunk: u32::from(s.chunk),
        unused: 0,
    };
    let visible: Vec<_> = a.visible.iter().map(|spans| spans.map(span)).collect();
    let args = hymba_kernels_metal::Attention {
        q: view(a.q),
        heads: a.heads.query,
        kv_heads: a.heads.kv,
        key_dim: a.heads.key_dim,
        value_dim: a.heads.value_dim,
        cache: a.cache.map(|buffer| &buffer.gpu().buffer),
        chunk: a.chunk.map(|buffer| &buffer.gpu().buffer),
        half: a.cache[0].gpu().cache == CacheType::F16,
        visible: &visible,
        decode: a.decode,
    };
    gpu.attention(&args, view_mut(&a.out));
}

impl Backend for Metal {
    fn run(&mut self, op: Op<'_>) {
        self.busy.store(true, Ordering::Relaxed);
        let gpu = &mut self.gpu;
        match op {
            Op::Gather { table, rows, out } => gpu.gather(weight(table), rows, view_mut(&out)),
            Op::MatMul { w, x, out, accumulate, spans } => matmul(gpu, w, [view(x), view_mut(&out)], accumulate, spans),
            Op::GatedMatMul { w: [g, u], x, gate, out, spans } => {
                matmul(gpu, g, [view(x), view_mut(&gate)], false, spans);
                matmul(gpu, u, [view(x), view_mut(&out)], false, spans);
                gpu.silu_mul(view_mut(&gate), view_mut(&out));
            }
            Op::AddBias { x, bias } => gpu.add_bias(view_mut(&x), bias),
            Op::RmsNorm { x, gain, eps, out } => gpu.rms_norm(view(x), gain, eps, view_mut(&out)),
            Op::HeadNorm { x, gain, eps } => gpu.head_norm(view_mut(&x), gain, eps),
            Op::Rope { x, dim, angles } => gpu.rope(view_mut(&x), dim, &angles.cos, &angles.sin),
            Op::StoreRows { x, out } => {
                let out = out.gpu();
                gpu.store_rows(view(x), &out.buffer, out.cache == CacheType::F16);
            }
            Op::CopyRows { from: (from, a), to: (to, b), rows, width } => {
                let (from, to) = (from.gpu(), to.gpu());
                assert!(from.cache == to.cache, "rows are copied between buffers of the same type");
                let (source, target) =
                    ((&from.buffer, from.cache.size(a * width)), (&to.buffer, to.cache.size(b * width)));
                gpu.copy(source, target, from.cache.size(rows * width));
            }
            Op::Attention(args) => attention(gpu, &args),
            Op::Conv { u, weight, bias, state, out } => {
                let args = Conv { u: view(u), weight, bias: bias.map(|b| &**b) };
                gpu.conv_silu(&args, &state.from.gpu().buffer, &state.to.gpu().buffer, view_mut(&out));
            }
            Op::Scan { input, weights: w, state, out } => {
                let args = Scan {
                    dt: view(input.dt),
                    dt_bias: w.dt_bias,
                    u: view(input.u),
                    gate: view(input.gate),
                    b: view(input.b),
                    c: view(input.c),
                    a: w.a,
                    d: w.d,
                };
                gpu.scan(&args, &state.from.gpu().buffer, &state.to.gpu().buffer, view_mut(&out));
            }
            Op::Fuse { a, b, eps, out } => gpu.fuse((view(a.0), a.1), (view(b.0), b.1), eps, view_mut(&out)),
            Op::Relu2 { x } => gpu.relu2(view_mut(&x)),
        }
    }

    fn max_abs(&mut self, _: MatRef<'_>) -> Option<f32> {
        None
    }

    fn finish(&mut self) -> Result<()> {
        let done = self.gpu.finish();
        // Even after an error, the GPU is idle.
        self.busy.store(false, Ordering::Relaxed);
        done.map_err(failed)
    }
}

impl Memory for Metal {
    fn zeros(&self, len: usize) -> Result<Buffer> {
        self.allocate(CacheType::F32, len)
    }

    fn kv_rows(&self, cache: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Buffer> {
        if cache == CacheType::Q8_0 {
            return Err(Error::GpuCacheType(cache.name()));
        }
        self.allocate(cache, rows.saturating_mul(heads * dim))
    }

    fn clear(&mut self, buffer: &mut Buffer) {
        self.busy.store(true, Ordering::Relaxed);
        self.gpu.clear(&buffer.gpu().buffer);
    }

    fn upload(&mut self, values: &[f32], buffer: &mut Buffer, at: usize) {
        self.wait();
        let to = buffer.gpu();
        assert!(at + values.len() <= to.len, "an upload reaches beyond the end of its buffer");
        let start = to.buffer.contents().wrapping_add(to.cache.size(at));
        // SAFETY: the values fit, the GPU is idle, and the buffer is borrowed mutably.
        unsafe {
            match to.cache {
                CacheType::F32 => std::ptr::copy_nonoverlapping(values.as_ptr(), start.cast(), values.len()),
                CacheType::F16 => {
                    let to = std::slice::from_raw_parts_mut(start.cast::<f16>(), values.len());
                    to.iter_mut().zip(values).for_each(|(to, v)| *to = f16::from_f32(*v));
                }
                CacheType::Q8_0 => unreachable!("{REFUSED}"),
            }
        }
    }

    fn download(&mut self, buffer: &Buffer, len: usize) -> Vec<f32> {
        self.wait();
        let from = buffer.gpu();
        assert!(len <= from.len, "a download reaches beyond the end of its buffer");
        match from.cache {
            CacheType::F32 => from.f32()[..len].to_vec(),
            CacheType::F16 => {
                // SAFETY: the buffer has as many values, the GPU is idle, and no one writes a borrowed buffer.
                let values = unsafe { std::slice::from_raw_parts(from.buffer.contents().cast::<f16>(), len) };
                values.iter().map(|v| v.to_f32()).collect()
            }
            CacheType::Q8_0 => unreachable!("{REFUSED}"),
        }
    }
}
