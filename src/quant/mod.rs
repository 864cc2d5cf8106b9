//! Block codecs, and the making of small checkpoints from large ones.

mod calibrate;
mod calibrated;
mod checkpoint;
mod codec;
mod convert;
mod random;
mod recipe;
mod rounding;
mod summary;

pub use calibrate::{Moments, Sample};
pub use codec::{BLOCK, Block, Unfit, decode_row, encode_row, levels};
pub use convert::{Calibration, Options, convert};
pub use random::{SHAPES, random_checkpoint};
pub use rounding::{Gptq, Order, Rounding};
pub use summary::{Event, Summary};
