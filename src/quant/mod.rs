//! The making of small checkpoints from large ones.

mod calibrate;
mod calibrated;
mod checkpoint;
mod convert;
mod meta_state;
mod mixture;
mod random;
mod recipe;
mod recode;
mod rounding;
mod summary;

pub use calibrate::{Moments, Sample};
pub use convert::{Calibration, Options, convert};
pub use mixture::{Recipe, mixture};
pub use random::{SHAPES, random_checkpoint};
pub use recode::recode;
pub use rounding::{Gptq, Order, Rounding};
pub use summary::{Event, Summary};
