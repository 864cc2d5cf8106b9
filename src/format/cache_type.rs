//! KV cache data types.

use super::DType;

/// Data type of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// 16-bit floats: the default of the KV cache.
    #[default]
    F16,
    /// 32-bit floats: activations, conv and SSM state.
    F32,
    /// Blocks of 32 signed bytes with a scale: half the size of F16.
    Q8_0,
}

impl CacheType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// Returns the type's name.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// Returns the corresponding tensor type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::Q8_0 => DType::Q8_0,
        }
    }

    /// Returns the largest magnitude that it can store at any position of a block.
    pub fn limit(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            Self::F32 => f32::MAX,
            Self::Q8_0 => 127.0 * 65504.0,
        }
    }

    /// Returns the bytes of `values` values, which are whole blocks.
    pub fn size(self, values: usize) -> usize {
        (values / self.dtype().block_len()).saturating_mul(self.dtype().block_bytes())
    }
}
