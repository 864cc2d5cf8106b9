//! File formats: GGUF v3 (memory-mapped reader, streaming writer), data types, block codecs, packed matrices, atomic
//! files.

mod atomic;
mod blob;
mod cache_type;
pub mod codec;
mod dtype;
pub mod gguf;
mod mapping;
mod open;
pub mod packed;
mod stored;
mod weight;

pub use atomic::{AtomicFile, Privacy, check_output, check_writable, write_atomically};
pub use blob::Blob;
pub use cache_type::CacheType;
pub use dtype::DType;
pub use mapping::install_sigbus_handler;
pub(crate) use mapping::{CHANGED, is_unchanged};
pub use open::{exists, open_file};
pub(crate) use stored::Source;
pub use stored::Stored;
pub use weight::{Matrix, Vector};
