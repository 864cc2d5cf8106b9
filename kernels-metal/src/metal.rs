//! The GPU of a Mac. There is one command buffer between two calls of [`Device::finish`], for a token or a chunk of a
//! prompt. Metal runs its dispatches in order, since they share one encoder.

use std::{any::Any, collections::HashMap, ffi::c_void, ptr::NonNull, sync::Arc};

use objc2::{
    rc::{Retained, autoreleasepool},
    runtime::ProtocolObject,
};
use objc2_foundation::{NSError, NSString};
use objc2_metal::{
    MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue, MTLComputeCommandEncoder,
    MTLComputePipelineState, MTLCopyAllDevices, MTLCreateSystemDefaultDevice, MTLDataType, MTLDevice,
    MTLFunctionConstantValues, MTLLibrary, MTLResourceOptions, MTLSize,
};

use crate::{Allocation, Buffer, Constants, Device, DeviceError, Dispatch};

// Needed to find the default device.
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;

/// The shaders, compiled by the build script if a Metal compiler was available.
#[cfg(hymba_metallib)]
static COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hymba.metallib"));

/// Returns the names of all devices.
pub(crate) fn names() -> Vec<String> {
    autoreleasepool(|_| MTLCopyAllDevices().iter().map(|d| d.name().to_string()).collect())
}

struct Memory {
    buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    len: usize,
}

// SAFETY: buffers may be used by any thread; users of `contents` synchronize their accesses.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Allocation for Memory {
    fn contents(&self) -> *mut u8 {
        self.buffer.contents().as_ptr().cast()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The current command buffer and its encoder.
struct Commands {
    buffer: Retained<ProtocolObject<dyn MTLCommandBuffer>>,
    encoder: Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>,
}

/// The default Metal device.
pub(crate) struct Metal {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    library: Retained<ProtocolObject<dyn MTLLibrary>>,
    pipelines: HashMap<(&'static str, Constants), Pipeline>,
    commands: Option<Commands>,
    failure: Option<DeviceError>,
}

// SAFETY: it is used by one thread at a time, and none of its objects are bound to a thread.
unsafe impl Send for Metal {}

fn text(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

impl Metal {
    /// Opens the default device and loads the shaders.
    pub(crate) fn open() -> Result<Self, DeviceError> {
        autoreleasepool(|_| {
            let missing = || DeviceError::Missing("this Mac has no Metal device".into());
            let device = MTLCreateSystemDefaultDevice().ok_or_else(missing)?;
            let queue = device.newCommandQueue().ok_or_else(missing)?;
            let library = load(&device)?;
            Ok(Self { device, queue, library, pipelines: HashMap::new(), commands: None, failure: None })
        })
    }

    fn pipeline(&mut self, kernel: &'static str, constants: Constants) -> Result<Pipeline, DeviceError> {
        if let Some(pipeline) = self.pipelines.get(&(kernel, constants)) {
            return Ok(pipeline.clone());
        }
        let refused = |e: Retained<NSError>| DeviceError::Shaders(format!("kernel {kernel}: {}", text(&e)));
        let values = MTLFunctionConstantValues::new();
        let words: [u32; size_of::<Constants>() / 4] = bytemuck::cast(constants);
        for (index, word) in words.iter().enumerate() {
            // SAFETY: the value is copied before the call returns, and has the given type.
            unsafe { values.setConstantValue_type_atIndex(NonNull::from(word).cast(), MTLDataType::UInt, index) };
        }
        let function = self
            .library
            .newFunctionWithName_constantValues_error(&NSString::from_str(kernel), &values)
            .map_err(refused)?;
        let pipeline = self.device.newComputePipelineStateWithFunction_error(&function).map_err(refused)?;
        self.pipelines.insert((kernel, constants), pipeline.clone());
        Ok(pipeline)
    }

    fn encode(&mut self, d: &Dispatch<'_>) -> Result<(), DeviceError> {
        let pipeline = self.pipeline(d.kernel, d.constants)?;
        let most = pipeline.maxTotalThreadsPerThreadgroup();
        if pipeline.threadExecutionWidth() != 32 || (d.threads as usize) > most {
            let what = format!("kernel {} needs simdgroups of 32 and {} threads together", d.kernel, d.threads);
            return Err(DeviceError::Shaders(what));
        }
        if self.commands.is_none() {
            let none = || DeviceError::Failed("it takes no more commands".into());
            let buffer = self.queue.commandBuffer().ok_or_else(none)?;
            let encoder = buffer.computeCommandEncoder().ok_or_else(none)?;
            self.commands = Some(Commands { buffer, encoder });
        }
        let Some(Commands { encoder, .. }) = &self.commands else { return Ok(()) };
        encoder.setComputePipelineState(&pipeline);
        for (index, binding) in d.bindings.iter().enumerate() {
            let Some(memory) = binding.buffer.as_any().downcast_ref::<Memory>() else {
                return Err(DeviceError::Failed("a buffer belongs to another device".into()));
            };
            // SAFETY: the operation has checked that the kernel's accesses are inside the buffer.
            unsafe { encoder.setBuffer_offset_atIndex(Some(&memory.buffer), binding.offset, index) };
        }
        let args = NonNull::from(d.args).cast::<c_void>();
        // SAFETY: the bytes are copied before the call returns.
        unsafe { encoder.setBytes_length_atIndex(args, d.args.len(), d.bindings.len()) };
        if d.threadgroup_bytes > 0 {
            let bytes = (d.threadgroup_bytes as usize).next_multiple_of(16);
            // SAFETY: the shaders use index 0.
            unsafe { encoder.setThreadgroupMemoryLength_atIndex(bytes, 0) };
        }
        let [width, height, depth] = d.groups.map(|n| n as usize);
        let threads = MTLSize { width: d.threads as usize, height: 1, depth: 1 };
        encoder.dispatchThreadgroups_threadsPerThreadgroup(MTLSize { width, height, depth }, threads);
        Ok(())
    }

    fn buffer(
        &self,
        buffer: Option<Retained<ProtocolObject<dyn MTLBuffer>>>,
        len: usize,
    ) -> Result<Buffer, DeviceError> {
        let buffer = buffer.ok_or(DeviceError::OutOfMemory(len))?;
        Ok(Arc::new(Memory { buffer, len }))
    }
}

/// Loads the compiled shaders, or compiles their source.
fn load(device: &ProtocolObject<dyn MTLDevice>) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, DeviceError> {
    let refused = |e: Retained<NSError>| DeviceError::Shaders(text(&e));
    #[cfg(hymba_metallib)]
    return device.newLibraryWithData_error(&dispatch2::DispatchData::from_static_bytes(COMPILED)).map_err(refused);
    #[cfg(not(hymba_metallib))]
    {
        let options = objc2_metal::MTLCompileOptions::new();
        // No fast math: infinities and the order of sums matter. The newer option is not available on every supported
        // Mac.
        #[allow(deprecated)]
        options.setFastMathEnabled(false);
        device.newLibraryWithSource_options_error(&NSString::from_str(crate::SOURCE), Some(&options)).map_err(refused)
    }
}

impl Device for Metal {
    fn name(&self) -> String {
        self.device.name().to_string()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        if bytes > self.device.maxBufferLength() {
            return Err(DeviceError::OutOfMemory(bytes));
        }
        // Empty buffers are not allowed. Shared memory is zeroed.
        let options = MTLResourceOptions::StorageModeShared;
        self.buffer(self.device.newBufferWithLength_options(bytes.max(4), options), bytes)
    }

    fn page(&self) -> usize {
        // SAFETY: the call has no preconditions.
        unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.try_into().unwrap_or(16384)
    }

    fn longest_buffer(&self) -> usize {
        self.device.maxBufferLength()
    }

    unsafe fn wrap(&self, bytes: *const u8, len: usize) -> Result<Buffer, DeviceError> {
        let Some(start) = NonNull::new(bytes.cast_mut()) else { return Err(DeviceError::OutOfMemory(len)) };
        let options = MTLResourceOptions::StorageModeShared;
        // SAFETY: the caller keeps the bytes alive as long as the buffer; without a deallocator they are not freed.
        let buffer = unsafe {
            self.device.newBufferWithBytesNoCopy_length_options_deallocator(start.cast(), len, options, None)
        };
        self.buffer(buffer, len)
    }

    fn dispatch(&mut self, dispatch: &Dispatch<'_>) {
        if self.failure.is_none() {
            self.failure = autoreleasepool(|_| self.encode(dispatch)).err();
        }
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        autoreleasepool(|_| {
            if let Some(Commands { buffer, encoder }) = self.commands.take() {
                encoder.endEncoding();
                buffer.commit();
                buffer.waitUntilCompleted();
                if buffer.status() != MTLCommandBufferStatus::Completed {
                    let what = buffer.error().map_or_else(|| "it gave no reason".into(), |e| text(&e));
                    self.failure.get_or_insert(DeviceError::Failed(what));
                }
            }
        });
        self.failure.take().map_or(Ok(()), Err)
    }
}
