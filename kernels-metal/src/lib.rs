//! Hymba on Apple GPUs: the shaders, and the code that launches them.
//!
//! `shaders/` contains the kernels. [`Gpu`] converts the model's operations to dispatches on any [`Device`]: a Metal
//! device on a Mac ([`system`]), or an emulator or another GPU in tests on other machines.

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
