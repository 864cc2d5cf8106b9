//! Memory of a machine: activations, states, keys and values.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::kv::Kv;
use crate::format::CacheType;

/// Values in a machine's memory.
pub enum Buffer {
    /// Floats in main memory.
    F32(Vec<f32>),
    /// Keys or values in main memory.
    Kv(Kv),
    /// Values in memory that the CPU shares with a GPU, whose operations alone use it.
    Gpu(GpuBuffer),
}

impl Buffer {
    /// The values of an F32 buffer.
    ///
    /// # Panics
    /// If it is of another type, or a GPU is still at work: see [`Backend::finish`](super::Backend::finish).
    pub fn f32(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::Gpu(buffer) => buffer.f32(),
            Self::Kv(_) => panic!("activations are f32"),
        }
    }

    /// The values of an F32 buffer in main memory.
    pub(super) fn f32_mut(&mut self) -> &mut [f32] {
        let Self::F32(values) = self else { panic!("the CPU writes activations in main memory") };
        values
    }

    /// The keys or values of a buffer in main memory.
    pub(super) fn kv(&self) -> &Kv {
        let Self::Kv(kv) = self else { panic!("the CPU's attention reads keys and values in main memory") };
        kv
    }

    pub(super) fn kv_mut(&mut self) -> &mut Kv {
        let Self::Kv(kv) = self else { panic!("the CPU stores keys and values in main memory") };
        kv
    }

    pub(super) fn gpu(&self) -> &GpuBuffer {
        let Self::Gpu(buffer) = self else { panic!("the GPU works on memory that it shares") };
        buffer
    }
}

/// Values in memory that the CPU and a GPU share.
pub struct GpuBuffer {
    /// The device's buffer.
    pub(super) buffer: hymba_kernels_metal::Buffer,
    pub(super) cache: CacheType,
    pub(super) len: usize,
    /// Whether the GPU is at work.
    pub(super) busy: Arc<AtomicBool>,
}

impl GpuBuffer {
    /// The values.
    ///
    /// # Panics
    /// If they are not F32, or the GPU is at work.
    pub fn f32(&self) -> &[f32] {
        assert!(self.cache == CacheType::F32, "activations are f32");
        assert!(!self.busy.load(Ordering::Relaxed), "the GPU is still at work");
        // SAFETY: the buffer has room for as many; the GPU is done, and operations that write it borrow it mutably.
        unsafe { std::slice::from_raw_parts(self.buffer.contents().cast(), self.len) }
    }
}
