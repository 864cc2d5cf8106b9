//! Calibration: the inputs of a model's matrices on a text.

mod driver;
mod moments;
mod sample;
mod stream;

pub(super) use driver::Calibrator;
pub(super) use moments::Moments;
pub use sample::Sample;
