//! The GPUs of this machine.

use crate::{Device, DeviceError};

/// Returns the names of this machine's Metal devices; none without Metal.
pub fn names() -> Vec<String> {
    #[cfg(target_os = "macos")]
    return crate::metal::names();
    #[cfg(not(target_os = "macos"))]
    Vec::new()
}

/// Opens the default Metal device.
pub fn open() -> Result<Box<dyn Device>, DeviceError> {
    #[cfg(target_os = "macos")]
    return Ok(Box::new(crate::metal::Metal::open()?));
    #[cfg(not(target_os = "macos"))]
    Err(DeviceError::Missing("Metal is only available on macOS".into()))
}
