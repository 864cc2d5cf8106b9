//! Prints the shaders as C++ for the shim, for `cuda/build.sh`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match hymba_metal_emulator::prepass::to_cpp(hymba_kernels_metal::SOURCE) {
        Ok(cpp) => {
            print!("{cpp}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("hymba-metal-cpp: {what}");
            ExitCode::FAILURE
        }
    }
}
