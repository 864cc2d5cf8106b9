//! Conversion and quantization.

mod calibrate;
mod checkpoint;
mod convert;
mod meta_state;
mod options;
mod random;
mod recipe;
mod requantize;
mod rounding;
mod summary;
mod tensor_plan;
mod tensor_type;

pub use calibrate::Sample;
pub use convert::convert;
pub use options::{Calibration, Options, Rounding, TypePlan};
pub use random::{SHAPES, random_checkpoint, random_weights};
pub use recipe::Recipe;
pub use requantize::requantize;
pub use rounding::{Gptq, Order};
pub use summary::{Event, Summary};
