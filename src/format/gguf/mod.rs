//! GGUF v3, the file: metadata keys and values, then named tensors, each at an aligned offset.
//! Source: the ggml project's `docs/gguf.md`. Little-endian only.

mod metadata;
mod read;
mod strings;
mod write;

pub use metadata::{Metadata, Value};
pub use read::{Gguf, Tensor};
pub use strings::Strings;
pub use write::{Layout, Slot, Writer};

/// Tensors start at multiples of this, a cache line.
pub const ALIGNMENT: usize = 64;

/// `general.architecture` of Hymba models.
pub const ARCHITECTURE: &str = "hymba";
/// The key of the recommended reply limit in tokens.
pub const MAX_NEW_TOKENS: &str = "general.sampling.max_new_tokens";

/// The key of all end-of-text tokens, if there are several.
pub const ENDS: &str = "hymba.eos_token_ids";

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
/// ggml's number of signed bytes, the stored type of packed matrices.
const I8: u32 = 24;

#[cfg(test)]
mod tests;
