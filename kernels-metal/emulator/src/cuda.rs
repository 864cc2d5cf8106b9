//! An NVIDIA GPU as a device, using the library built by `cuda/build.sh`. It has its own memory: inputs of kernels are
//! copied there before a launch, outputs are copied back when the device is idle. For tests and measurements.

use std::{
    any::Any,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use hymba_kernels_metal::{Allocation, Buffer, Device, DeviceError, Dispatch};
use libloading::Library;

use crate::emulator::Memory as Host;

const BUFFERS: usize = 12;
const ARGS: usize = 64;

#[repr(C)]
#[derive(Clone)]
struct Launch {
    kernel: *const c_char,
    buffers: [*mut c_void; BUFFERS],
    args: [u8; ARGS],
    args_bytes: usize,
    constants: [u32; 10],
    groups: [u32; 3],
    threads: u32,
    threadgroup_bytes: usize,
}

/// The library's functions.
struct Functions {
    problem: unsafe extern "C" fn(*mut c_char, usize),
    name: unsafe extern "C" fn(*mut c_char, usize) -> c_int,
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    upload: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> c_int,
    download: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> c_int,
    run: unsafe extern "C" fn(*const Launch) -> c_int,
    time: unsafe extern "C" fn(*const Launch, usize, c_int) -> f64,
    read_rate: unsafe extern "C" fn(usize) -> f64,
    _library: Library,
}

impl Functions {
    fn problem(&self) -> String {
        let mut text = [0 as c_char; 512];
        // SAFETY: the buffer has the given size and receives a terminated string.
        unsafe {
            (self.problem)(text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
        }
    }
}

/// One call at a time.
static LOCK: Mutex<()> = Mutex::new(());

struct Memory {
    host: Host,
    device: *mut c_void,
    /// Whether the device has written it since it was last copied back.
    dirty: AtomicBool,
    /// Whether it is read-only and already on the device.
    constant: bool,
    functions: Arc<Functions>,
}

// SAFETY: plain bytes, on the host and on the device; the library is called under a lock.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Allocation for Memory {
    fn contents(&self) -> *mut u8 {
        self.host.contents()
    }

    fn len(&self) -> usize {
        self.host.len()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _lock = LOCK.lock();
        // SAFETY: the library allocated it, and this is the only owner.
        unsafe { (self.functions.free)(self.device) }
    }
}

/// Recorded launches, to be timed.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Option<Vec<Prepared>>>>);

struct Prepared {
    launch: Launch,
    _kernel: CString,
    _buffers: Vec<Buffer>,
}

// SAFETY: the pointers are to device memory, and to the string and the buffers stored here.
unsafe impl Send for Prepared {}

/// A GPU.
pub struct Cuda {
    functions: Arc<Functions>,
    written: Vec<Buffer>,
    failure: Option<DeviceError>,
    recorded: Recorded,
}

/// Measures the time of a device's launches.
pub struct Stopwatch {
    functions: Arc<Functions>,
    recorded: Recorded,
}

impl Cuda {
    /// Opens the first GPU, using the library at `path`.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let missing = |e: libloading::Error| DeviceError::Missing(format!("{}: {e}", path.display()));
        // SAFETY: the library is the one built from cuda/, whose functions have these types.
        let functions = unsafe {
            let library = Library::new(path).map_err(missing)?;
            macro_rules! function {
                ($name:literal) => {
                    *library.get(concat!("hymba_cuda_", $name, "\0").as_bytes()).map_err(missing)?
                };
            }
            Functions {
                problem: function!("problem"),
                name: function!("name"),
                allocate: function!("allocate"),
                free: function!("free"),
                upload: function!("upload"),
                download: function!("download"),
                run: function!("run"),
                time: function!("time"),
                read_rate: function!("read_rate"),
                _library: library,
            }
        };
        let functions = Arc::new(functions);
        Ok(Self { functions, written: Vec::new(), failure: None, recorded: Recorded::default() })
    }

    /// Returns a stopwatch for this device.
    pub fn stopwatch(&self) -> Stopwatch {
        Stopwatch { functions: self.functions.clone(), recorded: self.recorded.clone() }
    }

    fn failed(&self) -> DeviceError {
        DeviceError::Failed(self.functions.problem())
    }

    fn memory(&self, host: Host, constant: bool) -> Result<Buffer, DeviceError> {
        let _lock = LOCK.lock();
        let len = host.len();
        // SAFETY: the call has no preconditions.
        let device = unsafe { (self.functions.allocate)(len) };
        if device.is_null() {
            return Err(DeviceError::OutOfMemory(len));
        }
        // SAFETY: both sides have the same size.
        if constant && unsafe { (self.functions.upload)(device, host.contents().cast(), len) } != 0 {
            return Err(self.failed());
        }
        let functions = self.functions.clone();
        Ok(Arc::new(Memory { host, device, dirty: AtomicBool::new(false), constant, functions }))
    }

    fn launch(&mut self, d: &Dispatch<'_>) -> Result<(), DeviceError> {
        let kernel = CString::new(d.kernel).expect("names have no zeros");
        let mut launch = Launch {
            kernel: kernel.as_ptr(),
            buffers: [std::ptr::null_mut(); BUFFERS],
            args: [0; ARGS],
            args_bytes: d.args.len(),
            constants: bytemuck::cast(d.constants),
            groups: d.groups,
            threads: d.threads,
            threadgroup_bytes: d.threadgroup_bytes as usize,
        };
        launch.args[..d.args.len()].copy_from_slice(d.args);
        let lock = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        for (slot, binding) in launch.buffers.iter_mut().zip(d.bindings) {
            let memory = binding.buffer.as_any().downcast_ref::<Memory>().expect("a buffer of this device");
            *slot = memory.device.wrapping_byte_add(binding.offset);
            if !memory.constant && !memory.dirty.load(Ordering::Relaxed) {
                let from = memory.contents().wrapping_add(binding.offset);
                // SAFETY: the binding is inside the buffer, which has the same size on both sides.
                if unsafe { (self.functions.upload)(*slot, from.cast(), binding.len) } != 0 {
                    return Err(self.failed());
                }
            }
        }
        for binding in d.bindings.iter().filter(|b| b.writable) {
            let memory = binding.buffer.as_any().downcast_ref::<Memory>().expect("a buffer of this device");
            if !memory.dirty.load(Ordering::Relaxed) {
                // Parts that are not bound must be uploaded too before the device's copy counts as the newer one.
                // SAFETY: the buffer has the same size on both sides.
                if unsafe { (self.functions.upload)(memory.device, memory.contents().cast(), memory.len()) } != 0 {
                    return Err(self.failed());
                }
                memory.dirty.store(true, Ordering::Relaxed);
                self.written.push(binding.buffer.clone());
            }
        }
        // SAFETY: the structure outlives the call, and its pointers are to device memory.
        if unsafe { (self.functions.run)(&launch) } != 0 {
            return Err(self.failed());
        }
        drop(lock);
        if let Some(recorded) = &mut *self.recorded.0.lock().unwrap_or_else(|e| e.into_inner()) {
            let buffers = d.bindings.iter().map(|b| b.buffer.clone()).collect();
            recorded.push(Prepared { launch, _kernel: kernel, _buffers: buffers });
        }
        Ok(())
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        let mut text = [0 as c_char; 256];
        // SAFETY: the buffer has the given size and receives a terminated string.
        unsafe {
            (self.functions.name)(text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
        }
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.memory(Host::zeros(bytes), false)
    }

    fn page(&self) -> usize {
        1
    }

    fn longest_buffer(&self) -> usize {
        usize::MAX
    }

    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError> {
        self.memory(Host::Wrapped(bytes.cast_mut(), len), true)
    }

    fn dispatch(&mut self, dispatch: &Dispatch<'_>) {
        if self.failure.is_none() {
            self.failure = self.launch(dispatch).err();
        }
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        for buffer in std::mem::take(&mut self.written) {
            let Some(memory) = buffer.as_any().downcast_ref::<Memory>() else { continue };
            let _lock = LOCK.lock();
            // SAFETY: the buffer has the same size on both sides.
            if unsafe { (self.functions.download)(memory.contents().cast(), memory.device, memory.len()) } != 0 {
                self.failure.get_or_insert(DeviceError::Failed(self.functions.problem()));
            }
            memory.dirty.store(false, Ordering::Relaxed);
        }
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Stopwatch {
    /// Returns another device for the same GPU, also measured by this stopwatch.
    pub fn device(&self) -> Cuda {
        let (functions, recorded) = (self.functions.clone(), self.recorded.clone());
        Cuda { functions, written: Vec::new(), failure: None, recorded }
    }

    /// Starts recording launches.
    pub fn record(&self) {
        *self.recorded.0.lock().unwrap_or_else(|e| e.into_inner()) = Some(Vec::new());
    }

    /// Returns the number of launches since [`Stopwatch::record`], and the mean time per launch in seconds: the best of
    /// `rounds`. All launches must have the same shape.
    pub fn time(&self, rounds: i32) -> Result<(usize, f64), DeviceError> {
        let recorded = self.recorded.0.lock().unwrap_or_else(|e| e.into_inner()).take().unwrap_or_default();
        let launches: Vec<Launch> = recorded.iter().map(|p| p.launch.clone()).collect();
        let one_shape = launches.windows(2).all(|w| w[0].constants == w[1].constants);
        assert!(one_shape && !launches.is_empty(), "launches of one shape are timed together");
        let _lock = LOCK.lock();
        // SAFETY: the launches and their pointers outlive the call.
        let seconds = unsafe { (self.functions.time)(launches.as_ptr(), launches.len(), rounds) };
        if seconds < 0.0 { Err(DeviceError::Failed(self.functions.problem())) } else { Ok((launches.len(), seconds)) }
    }

    /// Measures the device's memory read bandwidth in bytes per second.
    pub fn read_rate(&self) -> Result<f64, DeviceError> {
        let _lock = LOCK.lock();
        // SAFETY: the call has no preconditions.
        let rate = unsafe { (self.functions.read_rate)(4 << 30) };
        if rate < 0.0 { Err(DeviceError::Failed(self.functions.problem())) } else { Ok(rate) }
    }
}
