//! What the operations need of a machine.

use std::{any::Any, sync::Arc};

/// Memory that the CPU and the device share.
pub trait Allocation: Send + Sync {
    /// Where the CPU sees it.
    fn contents(&self) -> *mut u8;
    /// Bytes.
    fn len(&self) -> usize;
    /// Is there nothing in it?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// For the device that made it.
    fn as_any(&self) -> &dyn Any;
}

/// Memory, shared by reference.
pub type Buffer = Arc<dyn Allocation>;

/// What can go wrong with a device.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is none.
    #[error("{0}")]
    Missing(String),
    /// It has no room.
    #[error("the GPU has no memory for {:.1} MB more", *.0 as f64 / 1e6)]
    OutOfMemory(usize),
    /// It stopped, or refused a kernel.
    #[error("the GPU failed: {0}")]
    Failed(String),
    /// The shaders do not compile for it.
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

/// A part of a buffer that a kernel may touch.
#[derive(Clone)]
pub struct Binding {
    /// The memory.
    pub buffer: Buffer,
    /// The first byte.
    pub offset: usize,
    /// Bytes that are touched from there on at most.
    pub len: usize,
    /// Are they written?
    pub writable: bool,
}

/// One launch of a kernel.
pub struct Dispatch<'a> {
    /// Its name.
    pub kernel: &'static str,
    /// The shape it is made for.
    pub constants: Constants,
    /// Buffers by index; the arguments have the next index.
    pub bindings: &'a [Binding],
    /// The arguments' bytes.
    pub args: &'a [u8],
    /// Threadgroups in x, y, z.
    pub groups: [u32; 3],
    /// Threads of a threadgroup, a multiple of 32.
    pub threads: u32,
    /// Bytes of threadgroup memory.
    pub threadgroup_bytes: u32,
}

/// A machine that runs the kernels, in the order in which they are dispatched.
pub trait Device: Send {
    /// What it is called.
    fn name(&self) -> String;
    /// Memory of zeros.
    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError>;
    /// What [`Device::wrap`] wants addresses and lengths to be multiples of.
    fn page(&self) -> usize;
    /// Bytes that a buffer can have at most.
    fn longest_buffer(&self) -> usize;
    /// Memory that is there already, without a copy; it is only read.
    ///
    /// # Safety
    /// The bytes must stay where they are, and unchanged, for as long as the buffer is used.
    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError>;
    /// Asks for a launch. What goes wrong is told by [`Device::finish`].
    fn dispatch(&mut self, dispatch: &Dispatch<'_>);
    /// Waits until all launches are done.
    fn finish(&mut self) -> Result<(), DeviceError>;
}
