//! The emulator in `runtime/` as a device. Every access of a kernel to memory is checked.

use std::{
    any::Any,
    ffi::{CString, c_char, c_int, c_void},
    sync::Mutex,
};

use hymba_kernels_metal::{Allocation, Buffer, Device, DeviceError, Dispatch};

#[repr(C)]
struct RawBuffer {
    memory: *mut c_void,
    bytes: usize,
    writable: c_int,
}

#[repr(C)]
struct RawDispatch {
    kernel: *const c_char,
    buffers: *const RawBuffer,
    n_buffers: usize,
    args: *const c_void,
    args_bytes: usize,
    constants: *const u32,
    n_constants: usize,
    groups: [u32; 3],
    threads: u32,
    threadgroup_bytes: usize,
}

unsafe extern "C" {
    fn hymba_emulator_run(dispatch: *const RawDispatch, error: *mut c_char, error_bytes: usize) -> c_int;
}

/// The emulator runs one dispatch at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Size in bytes of the guard zones around every allocation.
const REDZONE: usize = 4096;
const ALIGNMENT: usize = 64;

/// Memory of the emulated device.
pub(crate) enum Memory {
    /// An allocation of its own: the storage, and the usable bytes.
    Own(#[allow(dead_code)] Box<[u64]>, *mut u8, usize),
    /// Wrapped memory.
    Wrapped(*mut u8, usize),
}

// SAFETY: plain bytes; users of `contents` synchronize their accesses.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn zeros(bytes: usize) -> Self {
        let mut storage = vec![0u64; (bytes + 2 * REDZONE + ALIGNMENT).div_ceil(8)].into_boxed_slice();
        let base = storage.as_mut_ptr().cast::<u8>();
        let start = base.wrapping_add((base as usize + REDZONE).next_multiple_of(ALIGNMENT) - base as usize);
        Self::Own(storage, start, bytes)
    }
}

impl Allocation for Memory {
    fn contents(&self) -> *mut u8 {
        match *self {
            Self::Own(_, start, _) | Self::Wrapped(start, _) => start,
        }
    }

    fn len(&self) -> usize {
        match *self {
            Self::Own(_, _, len) | Self::Wrapped(_, len) => len,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device without hardware.
#[derive(Default)]
pub struct Emulator {
    longest_buffer: Option<usize>,
    failure: Option<String>,
    dispatches: usize,
}

impl Emulator {
    /// Returns a device with a maximum buffer size of `longest_buffer` bytes.
    pub fn with_longest_buffer(longest_buffer: usize) -> Self {
        Self { longest_buffer: Some(longest_buffer), ..Self::default() }
    }
}

impl Device for Emulator {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        Ok(std::sync::Arc::new(Memory::zeros(bytes)))
    }

    fn page(&self) -> usize {
        1
    }

    fn longest_buffer(&self) -> usize {
        self.longest_buffer.unwrap_or(usize::MAX)
    }

    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError> {
        Ok(std::sync::Arc::new(Memory::Wrapped(bytes.cast_mut(), len)))
    }

    fn dispatch(&mut self, d: &Dispatch<'_>) {
        if self.failure.is_some() {
            return;
        }
        self.dispatches += 1;
        let kernel = CString::new(d.kernel).expect("names have no zeros");
        let buffers: Vec<RawBuffer> = d
            .bindings
            .iter()
            .map(|b| RawBuffer {
                memory: b.buffer.contents().wrapping_add(b.offset).cast(),
                bytes: b.len,
                writable: c_int::from(b.writable),
            })
            .collect();
        let constants: [u32; 10] = bytemuck::cast(d.constants);
        let mut args = [0u128; 8]; // aligned like a buffer
        bytemuck::bytes_of_mut(&mut args)[..d.args.len()].copy_from_slice(d.args);
        let raw = RawDispatch {
            kernel: kernel.as_ptr(),
            buffers: buffers.as_ptr(),
            n_buffers: buffers.len(),
            args: args.as_ptr().cast(),
            args_bytes: d.args.len(),
            constants: constants.as_ptr(),
            n_constants: constants.len(),
            groups: d.groups,
            threads: d.threads,
            threadgroup_bytes: d.threadgroup_bytes as usize,
        };
        let mut error = [0u8; 512];
        let lock = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the structure and its pointers outlive the call, and there is only one call at a time.
        let failed = unsafe { hymba_emulator_run(&raw, error.as_mut_ptr().cast(), error.len()) };
        drop(lock);
        if failed != 0 {
            let end = error.iter().position(|&b| b == 0).unwrap_or(error.len());
            self.failure = Some(String::from_utf8_lossy(&error[..end]).into_owned());
        }
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        self.failure.take().map_or(Ok(()), |what| Err(DeviceError::Failed(what)))
    }
}
