//! Hymba on Apple's GPUs: the shaders, and what launches them.
//!
//! `shaders/` holds the kernels. [`Gpu`] turns the model's operations into dispatches, on any [`Device`]: a Metal
//! device on a Mac ([`system`]), or, in the tests of any machine, one that emulates it or stands in for it.

mod attention;
mod device;
#[cfg(target_os = "macos")]
mod metal;
mod ops;
mod source;
mod ssm;
pub mod system;
mod weights;

pub use attention::{Attention, KvSpan};
pub use device::{Allocation, Binding, Buffer, Constants, Device, DeviceError, Dispatch};
pub use ops::{Gpu, View};
pub use source::SOURCE;
pub use ssm::{Conv, Scan};
pub use weights::{Format, Weight};
