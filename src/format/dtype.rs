//! How a tensor's values are stored: ggml's types, as far as Hymba files use them.

use std::fmt;

/// The element type of a stored tensor. Quantized types hold blocks of 32 values along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// Blocks of 32: an F16 scale d and 32 signed bytes q; a value is d·q.
    Q8_0,
    /// Blocks of 32: an F16 scale d and 32 nibbles q; a value is d·(q − 8). Byte j holds values j (low) and j + 16.
    Q4_0,
}

impl DType {
    /// Every type, in the order in which help texts list them.
    pub const ALL: [DType; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

    /// The name users type and see, ggml's own in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The type called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// ggml's number for the type (`enum ggml_type`).
    pub fn ggml_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 30,
            Self::Q8_0 => 8,
            Self::Q4_0 => 2,
        }
    }

    /// The type with ggml's number `id`, if we know it.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.ggml_id() == id)
    }

    /// llama.cpp's `general.file_type` for a file that is mostly of this type.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 32,
            Self::Q8_0 => 7,
            Self::Q4_0 => 2,
        }
    }

    /// Values in a block; rows must be a multiple of it.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row of `cols` values; `None` if `cols` is no multiple of the block.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len() * self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
