//! Placeholder.
use hymba_kernels_metal::{Buffer, Device, DeviceError, Dispatch};
use std::path::Path;
/// A GPU.
pub struct Cuda;
impl Cuda {
    /// Opens.
    pub fn open(_: &Path) -> Result<Self, DeviceError> {
        Err(DeviceError::Missing("not yet".into()))
    }
}
impl Device for Cuda {
    fn name(&self) -> String {
        String::new()
    }
    fn allocate(&self, _: usize) -> Result<Buffer, DeviceError> {
        unimplemented!()
    }
    fn page(&self) -> usize {
        1
    }
    fn longest_buffer(&self) -> usize {
        usize::MAX
    }
    unsafe fn wrap(&self, _: *const u8, _: usize) -> Result<Buffer, DeviceError> {
        unimplemented!()
    }
    fn dispatch(&mut self, _: &Dispatch<'_>) {}
    fn finish(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}
