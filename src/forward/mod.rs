//! The forward pass, written once for every backend. [`Chunk`]'s `layer` reads like the figure of the paper (arXiv
//! 2411.13676): attention heads and Mamba heads read the same input side by side; their outputs are normed, averaged and
//! projected together.

mod chunk;
mod commit;
mod meta;
mod pending;
mod scratch;
mod segment;

pub use chunk::{CHUNK, Chunk, Input, LayerView, Observer};
pub use meta::MetaPass;
pub use pending::DECODE_TOKENS;
pub use scratch::{Scratch, ScratchSize};
pub use segment::{Phase, Segment};
