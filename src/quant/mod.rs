//! Block codecs, and the making of small checkpoints from large ones.

mod checkpoint;
mod codec;
mod convert;
mod mixture;
mod random;
mod recipe;
mod recode;
mod summary;

pub use codec::{BLOCK, Block, Unfit, decode_row, encode_row, levels};
pub use convert::{Options, convert};
pub use mixture::{Recipe, mixture};
pub use random::{SHAPES, random_checkpoint};
pub use recode::recode;
pub use summary::{Event, Summary};
