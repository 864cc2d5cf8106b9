//! Tensor data types: the subset of ggml's types that Hymba files use.

use std::fmt;

/// The element type of a stored tensor. Quantized types hold blocks of 32 values along a row.
///
/// A block's codes q are nibbles: byte j holds those of values j (low) and j + 16. The fifth bits of 5-bit codes come
/// before, value i's as bit i of 32. d and m are F16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// A scale d and 32 signed bytes q; a value is d·q.
    Q8_0,
    /// A scale d, a minimum m and 5-bit codes; a value is d·q + m.
    Q5_1,
    /// A scale d and 5-bit codes; a value is d·(q − 16).
    Q5_0,
    /// A scale d, a minimum m and 4-bit codes; a value is d·q + m.
    Q4_1,
    /// A scale d and 4-bit codes; a value is d·(q − 8).
    Q4_0,
    /// A scale d and 4-bit codes; a value is d·t\[q\], of a fixed table that is denser near zero.
    Iq4Nl,
    /// A power of two d, in one byte, and 4-bit codes; a value is d·t\[q\], of the table of 4-bit floats (E2M1).
    Mxfp4,
}

/// Properties of a type.
struct Facts {
    name: &'static str,
    ggml_id: u32,
    file_type: u32,
    block_len: usize,
    block_bytes: usize,
}

impl DType {
    /// Every type, in the order of help texts.
    pub const ALL: [DType; 10] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
        Self::Iq4Nl,
        Self::Mxfp4,
    ];

    const fn facts(self) -> Facts {
        let (name, ggml_id, file_type, block_len, block_bytes) = match self {
            Self::F32 => ("f32", 0, 0, 1, 4),
            Self::F16 => ("f16", 1, 1, 1, 2),
            Self::BF16 => ("bf16", 30, 32, 1, 2),
            Self::Q8_0 => ("q8_0", 8, 7, 32, 34),
            Self::Q5_1 => ("q5_1", 7, 9, 32, 24),
            Self::Q5_0 => ("q5_0", 6, 8, 32, 22),
            Self::Q4_1 => ("q4_1", 3, 3, 32, 20),
            Self::Q4_0 => ("q4_0", 2, 2, 32, 18),
            Self::Iq4Nl => ("iq4_nl", 20, 25, 32, 18),
            Self::Mxfp4 => ("mxfp4", 39, 38, 32, 17),
        };
        Facts { name, ggml_id, file_type, block_len, block_bytes }
    }

    /// Returns the type's name: ggml's in lower case.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Returns the type called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Returns ggml's number of the type (`enum ggml_type`).
    pub const fn ggml_id(self) -> u32 {
        self.facts().ggml_id
    }

    /// Returns the type with ggml's number `id`, if supported.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.ggml_id() == id)
    }

    /// Returns llama.cpp's `general.file_type` for a file mostly of this type.
    pub const fn file_type(self) -> u32 {
        self.facts().file_type
    }

    /// Returns the block length in values; row lengths must be a multiple of it.
    pub const fn block_len(self) -> usize {
        self.facts().block_len
    }

    /// Returns the bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().block_bytes
    }

    /// Whether values are quantized in blocks with a common scale.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Whether a block has a minimum besides its scale.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1)
    }

    /// Whether codes have a fifth bit, stored separately.
    pub const fn has_fifth_bits(self) -> bool {
        matches!(self, Self::Q5_0 | Self::Q5_1)
    }

    /// Returns the bytes of a row of `cols` values; `None` if `cols` is not a multiple of the block length, or too
    /// large.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
