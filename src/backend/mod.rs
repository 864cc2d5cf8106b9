//! What runs the model: operations on activations in a machine's own memory. [`Cpu`] is one machine, [`Metal`] another;
//! the model is written once for all of them.

mod buffer;
mod cpu;
mod device;
mod kv;
mod metal;
mod op;

pub use buffer::{Buffer, GpuBuffer};
pub use cpu::{Cpu, KERNELS};
pub use device::{Device, DeviceChoice, Profile, devices};
pub use metal::Metal;
pub use op::{
    Angles, Attention, Backend, Carried, Heads, KvSpan, MatMut, MatRef, Memory, Op, Operation, RowSpan, ScanInput,
    ScanWeights, Watched,
};
