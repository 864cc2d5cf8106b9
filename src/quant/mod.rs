//! Block codecs, and the making of small checkpoints from large ones.

mod checkpoint;
mod codec;
mod convert;
mod random;
mod recipe;
mod summary;

pub use codec::{BLOCK, Block, Unfit, decode_row, encode_row, levels};
pub use convert::{Options, convert};
pub use random::{SHAPES, random_checkpoint};
pub use summary::{Event, Summary};
