//! The number types of a KV cache.

use super::DType;

/// How a buffer stores its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// 16-bit floats: the default of the KV cache.
    #[default]
    F16,
    /// 32-bit floats: activations, conv and SSM state.
    F32,
    /// Blocks of 32 signed bytes with a scale: a KV cache of half the size.
    Q8_0,
}

impl CacheType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// The name that users type and see.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// The same type in a file.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::Q8_0 => DType::Q8_0,
        }
    }

    /// The largest magnitude that it can store, at any place in a block.
    pub fn limit(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            Self::F32 => f32::MAX,
            Self::Q8_0 => 127.0 * 65504.0,
        }
    }

    /// Bytes of `values` values, a whole number of blocks.
    pub fn size(self, values: usize) -> usize {
        (values / self.dtype().block_len()).saturating_mul(self.dtype().block_bytes())
    }
}
