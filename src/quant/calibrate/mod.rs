//! Calibration: what a model's matrices multiply while it reads a text.

mod moments;
mod sample;
mod stream;

pub use moments::Moments;
pub use sample::Sample;
pub(super) use stream::{Advance, Stream};
