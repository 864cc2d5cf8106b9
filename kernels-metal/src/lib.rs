//! Hymba on Apple's GPUs: the shaders, and what launches them.
//!
//! `shaders/` holds the kernels. [`Gpu`] turns the model's operations into dispatches, on any [`Device`]: a Metal
//! device on a Mac ([`system`]), or, in the tests of any machine, one that emulates it or stands in for it.

mod attention;
mod device;
#[cfg(target_os = "macos")]
mod metal;
mod ops;
mod ssm;
pub mod system;
mod weights;

pub use attention::{Attention, Run};
pub use device::{Allocation, Binding, Buffer, Constants, Device, DeviceError, Dispatch};
pub use ops::{Gpu, View};
pub use ssm::{Conv, Scan};
pub use weights::{Format, Weight};

/// The shaders, one source: `common.metal` comes first.
pub const SOURCE: &str = concat!(
    include_str!("../shaders/common.metal"),
    include_str!("../shaders/weights.metal"),
    include_str!("../shaders/matvec.metal"),
    include_str!("../shaders/matmul.metal"),
    include_str!("../shaders/norms.metal"),
    include_str!("../shaders/elementwise.metal"),
    include_str!("../shaders/ssm.metal"),
    include_str!("../shaders/attention.metal"),
    include_str!("../shaders/top_k.metal"),
);
