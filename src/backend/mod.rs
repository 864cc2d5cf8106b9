//! Backends: operations on activations in device memory. [`Cpu`] and [`Metal`] run the same forward pass.

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
    Angles, Attention, Backend, Heads, KvSpan, MatMut, MatRef, Memory, Op, Operation, RowSpan, ScanInput, ScanWeights,
    StateUpdate, Watched,
};

#[cfg(test)]
mod tests {
    use hymba_kernels_cpu::TypeFacts;

    use super::{cpu::weight_types, metal::formats};
    use crate::format::{DType, codec::levels};

    #[test]
    fn kernels_codec_and_shaders_agree_on_every_type() {
        for dtype in DType::ALL {
            let types = weight_types(dtype);
            assert_eq!(types.map(|t| t as u32), formats(dtype).map(|f| f as u32), "{dtype}: the shaders' numbers");
            let facts = types.map(TypeFacts::of);
            assert!(facts.iter().all(|f| f.is_some() == dtype.is_quantized()), "{dtype}: floats have no facts");
            for facts in facts.into_iter().flatten() {
                assert_eq!([facts.plain, facts.packed], types, "{dtype}");
                assert_eq!(facts.block_bytes(), dtype.block_bytes(), "{dtype}");
                assert_eq!(facts.has_min, dtype.has_min(), "{dtype}");
                assert_eq!(facts.has_fifth, dtype.has_fifth_bits(), "{dtype}");
                assert_eq!(facts.levels(), levels(dtype), "{dtype}");
            }
        }
    }
}
