//! The interface to a GPU.

use std::{any::Any, sync::Arc};

/// Memory shared by the CPU and the device.
pub trait Allocation: Send + Sync {
    /// Returns the CPU's address of the memory.
    fn contents(&self) -> *mut u8;
    /// Returns the size in bytes.
    fn len(&self) -> usize;
    /// Whether the size is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// For downcasts by the device that allocated it.
    fn as_any(&self) -> &dyn Any;
}

/// Reference-counted memory.
pub type Buffer = Arc<dyn Allocation>;

/// A device error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no device.
    #[error("{0}")]
    Missing(String),
    /// Out of memory.
    #[error("the GPU has no memory for {:.1} MB more", *.0 as f64 / 1e6)]
    OutOfMemory(usize),
    /// The device failed, or rejected a kernel.
    #[error("the GPU failed: {0}")]
    Failed(String),
    /// The shaders cannot be compiled for it.
    #[error("the GPU's compiler refused the shaders: {0}")]
    Shaders(String),
}

/// The function constants of `shaders/common.metal`, in the order of their indices.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct Constants {
    pub format: u32,
    pub aligned: u32,
    pub cache_half: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub group: u32,
    pub kv_heads: u32,
    pub states: u32,
    pub lanes: u32,
    pub taps: u32,
}

/// The part of a buffer that a kernel may access.
#[derive(Clone)]
pub struct Binding {
    /// The memory.
    pub buffer: Buffer,
    /// Offset of the first byte.
    pub offset: usize,
    /// Maximum number of bytes accessed from there.
    pub len: usize,
    /// Whether the kernel writes to it.
    pub writable: bool,
}

/// A kernel launch.
pub struct Dispatch<'a> {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// The function constants.
    pub constants: Constants,
    /// Buffers by index; the arguments have the index after the last one.
    pub bindings: &'a [Binding],
    /// The bytes of the arguments.
    pub args: &'a [u8],
    /// Number of threadgroups in x, y, z.
    pub groups: [u32; 3],
    /// Threads per threadgroup, a multiple of 32.
    pub threads: u32,
    /// Size of the threadgroup memory in bytes.
    pub threadgroup_bytes: u32,
}

/// A device that runs kernels in the order of their dispatch.
pub trait Device: Send {
    /// Returns the name of the device.
    fn name(&self) -> String;
    /// Allocates zeroed memory.
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError>;
    /// Returns the alignment of addresses and lengths for [`Device::wrap`].
    fn page(&self) -> usize;
    /// Returns the maximum size of a buffer in bytes.
    fn longest_buffer(&self) -> usize;
    /// Wraps existing read-only memory without copying it.
    ///
    /// # Safety
    /// The bytes must not move or change while the buffer is in use.
    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError>;
    /// Enqueues a launch. Errors are reported by [`Device::finish`].
    fn dispatch(&mut self, dispatch: &Dispatch<'_>);
    /// Waits for all launches.
    fn finish(&mut self) -> Result<(), DeviceError>;
}
