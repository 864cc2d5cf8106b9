//! Block codecs, and the making of small checkpoints from large ones.

mod codec;

pub use codec::{Unfit, decode_row, encode_row};
