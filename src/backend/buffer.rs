//! Device memory: activations, states, keys and values.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::kv::Kv;
use crate::format::CacheType;

/// A buffer in device memory.
pub enum Buffer {
    /// f32 values in main memory.
    F32(Vec<f32>),
    /// Keys or values in main memory.
    Kv(Kv),
    /// Memory shared between CPU and GPU, used only by GPU operations.
    Gpu(GpuBuffer),
}

impl Buffer {
    /// Returns the values of an f32 buffer.
    ///
    /// # Panics If the buffer has another type, or the GPU is busy: see [`Backend::finish`](super::Backend::finish).
    pub fn f32(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::Gpu(buffer) => buffer.f32(),
            Self::Kv(_) => panic!("activations are f32"),
        }
    }

    /// Returns the values of an f32 buffer in main memory.
    pub(super) fn f32_mut(&mut self) -> &mut [f32] {
        let Self::F32(values) = self else { panic!("activations of the CPU are in main memory") };
        values
    }

    /// Returns the keys or values of a buffer in main memory.
    pub(super) fn kv(&self) -> &Kv {
        let Self::Kv(kv) = self else { panic!("keys and values of the CPU's attention are in main memory") };
        kv
    }

    pub(super) fn kv_mut(&mut self) -> &mut Kv {
        let Self::Kv(kv) = self else { panic!("keys and values of the CPU are in main memory") };
        kv
    }

    pub(super) fn gpu(&self) -> &GpuBuffer {
        let Self::Gpu(buffer) = self else { panic!("the GPU requires shared memory") };
        buffer
    }
}

/// Memory shared between CPU and GPU.
pub struct GpuBuffer {
    /// The device's buffer.
    pub(super) buffer: hymba_kernels_metal::Buffer,
    pub(super) cache: CacheType,
    pub(super) len: usize,
    /// Whether the GPU is busy.
    pub(super) busy: Arc<AtomicBool>,
}

impl GpuBuffer {
    /// Returns the values.
    ///
    /// # Panics If they are not f32, or the GPU is busy.
    pub fn f32(&self) -> &[f32] {
        assert!(self.cache == CacheType::F32, "activations are f32");
        assert!(!self.busy.load(Ordering::Relaxed), "the GPU is busy");
        // SAFETY: the buffer is large enough; the GPU is idle, and operations that write the buffer borrow it mutably.
        unsafe { std::slice::from_raw_parts(self.buffer.contents().cast(), self.len) }
    }
}
