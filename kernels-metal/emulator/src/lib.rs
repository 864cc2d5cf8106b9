//! Replacements for a Mac's GPU in tests: [`Emulator`] on any machine, [`Cuda`] on machines with an NVIDIA GPU. Both
//! run the original shader files, compiled as C++.

mod cuda;
mod emulator;
pub mod prepass;

pub use cuda::{Cuda, Stopwatch};
pub use emulator::Emulator;

/// Returns the emulator, or the GPU if `HYMBA_METAL_CUDA` names the library built by `cuda/build.sh`.
///
/// # Panics If the library or the GPU cannot be used.
pub fn device() -> Box<dyn hymba_kernels_metal::Device> {
    match std::env::var_os("HYMBA_METAL_CUDA") {
        Some(path) => Box::new(Cuda::open(path.as_ref()).unwrap_or_else(|e| panic!("HYMBA_METAL_CUDA: {e}"))),
        None => Box::new(Emulator::default()),
    }
}
