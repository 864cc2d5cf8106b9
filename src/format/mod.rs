//! Files: GGUF v3 (read through a memory map, written as a stream) and Hugging Face folders (read only).

mod atomic;
mod blob;
mod dtype;
pub mod gguf;
pub mod hf;
mod mapping;
pub mod packed;
mod stored;

pub use atomic::{AtomicFile, check_output, check_writable, write_atomically};
pub use blob::Blob;
pub use dtype::DType;
pub use mapping::exit_where_files_end;
pub(crate) use stored::Source;
pub use stored::Stored;
