//! The table of quantized types, `include/hk_types.h`.

use crate::bindings::{self as hk, hk_type};

/// Properties of a quantized type. A block of 32 values consists of a scale, a minimum, the fifth bits of 5-bit codes,
/// and codes, as far as the type has them.
#[derive(Clone, Copy, Debug)]
pub struct TypeFacts {
    /// The type with consecutive rows.
    pub plain: hk_type,
    /// The type with rows interleaved by eight.
    pub packed: hk_type,
    /// Size of the scale: 2 bytes for a half float, 1 for an exponent.
    pub scale_bytes: usize,
    /// Whether a block has a minimum (a half float).
    pub has_min: bool,
    /// Whether codes have a fifth bit, stored separately.
    pub has_fifth: bool,
    /// Bits per code without the fifth: 4 or 8.
    pub code_bits: usize,
    zero_point: i32,
    levels: Option<&'static [i8; 16]>,
}

impl TypeFacts {
    /// Returns the properties of a quantized type, plain or packed; `None` for floats.
    pub fn of(dtype: hk_type) -> Option<Self> {
        // SAFETY: the function returns the address of a constant, or null; so are its levels, of which there are 16.
        let (facts, levels) = unsafe {
            let facts = hk::hk_facts(dtype).as_ref()?;
            (facts, facts.levels.cast::<[i8; 16]>().as_ref())
        };
        Some(Self {
            plain: facts.plain,
            packed: facts.packed,
            scale_bytes: facts.scale_bytes,
            has_min: facts.has_min != 0,
            has_fifth: facts.has_fifth != 0,
            code_bits: facts.code_bits,
            zero_point: facts.zero_point,
            levels,
        })
    }

    /// Returns the bytes per block; for a packed matrix, an eighth of the block of eight rows.
    pub fn block_bytes(&self) -> usize {
        let head = self.scale_bytes + if self.has_min { 2 } else { 0 } + if self.has_fifth { 4 } else { 0 };
        head + hk::HK_BLOCK as usize * self.code_bits / 8
    }

    /// Returns the value of each code before scale and minimum; signed bytes are in the order of their values.
    pub fn levels(&self) -> Vec<i8> {
        match self.levels {
            Some(levels) => levels.to_vec(),
            None if self.code_bits == 8 => (i8::MIN..=i8::MAX).collect(),
            None => (0..if self.has_fifth { 32 } else { 16 }).map(|code| (code - self.zero_point) as i8).collect(),
        }
    }
}
