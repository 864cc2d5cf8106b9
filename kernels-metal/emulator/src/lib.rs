//! Devices that stand in for a Mac's GPU in the tests: [`Emulator`] on any machine, [`Cuda`] on one with another make
//! of GPU. Both run the very shader files, compiled as C++.

mod cuda;
mod emulator;
pub mod prepass;

pub use cuda::Cuda;
pub use emulator::Emulator;
