//! Devices that stand in for a Mac's GPU in the tests: [`Emulator`] on any machine, [`Cuda`] on one with another make
//! of GPU. Both run the very shader files, compiled as C++.

mod cuda;
mod emulator;
pub mod prepass;

pub use cuda::{Cuda, Stopwatch};
pub use emulator::Emulator;

/// The emulator, or, if `HYMBA_METAL_CUDA` names the library that `cuda/build.sh` makes, the GPU.
///
/// # Panics
/// If the library or the GPU can't be used.
pub fn device() -> Box<dyn hymba_kernels_metal::Device> {
    match std::env::var_os("HYMBA_METAL_CUDA") {
        Some(path) => Box::new(Cuda::open(path.as_ref()).unwrap_or_else(|e| panic!("HYMBA_METAL_CUDA: {e}"))),
        None => Box::new(Emulator::default()),
    }
}
