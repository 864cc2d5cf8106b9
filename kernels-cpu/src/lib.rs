//! CPU kernels behind a safe interface.
//!
//! `c/` contains the kernels: a scalar reference for each, and SIMD versions selected at run time by the features of
//! the CPU. The rest of the program uses [`Cpu`]: whole operations on matrices of activations, with checked shapes,
//! parallelized over a thread [`Pool`]. Results do not depend on the number of threads.

#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
mod bindings;
mod mat;
mod ops;
mod pool;
mod types;

pub use mat::{MatMut, MatRef};
pub use ops::{Attention, Conv, Cpu, KvRows, KvSpan, Scan, Weight, WeightType};
pub use pool::Pool;
pub use types::TypeFacts;

/// One set of kernels: the scalar reference, or an instruction set's.
#[derive(Clone, Copy)]
pub struct Kernels(&'static bindings::hk_kernels);

// SAFETY: the tables are constants, and the kernels keep no state.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    fn table(self) -> &'static bindings::hk_kernels {
        self.0
    }

    /// Returns the plain reference, which runs anywhere.
    pub fn scalar() -> Self {
        // SAFETY: the function returns the address of a constant table.
        Self(unsafe { &*bindings::hk_scalar() })
    }

    /// Returns every set that this CPU can run, fastest first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        // Adds a table if the CPU has the required features; it is null if it was not compiled for this architecture.
        macro_rules! add {
            ($table:ident: $detected:ident, $($feature:tt)*) => {
                if $($detected!($feature) &&)* true {
                    // SAFETY: the function returns the address of a constant table, or null.
                    all.extend(unsafe { bindings::$table().as_ref() }.map(Self));
                }
            };
        }
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            add!(hk_avx512vbmi: has, "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512vbmi");
            add!(hk_avx512vnni: has, "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni");
            add!(hk_avxvnni: has, "avx2" "fma" "f16c" "avxvnni");
            add!(hk_avx2: has, "avx2" "fma" "f16c");
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            add!(hk_neon_i8mm: has, "neon" "dotprod" "i8mm");
            add!(hk_neon_dotprod: has, "neon" "dotprod");
            add!(hk_neon: has, "neon");
        }
        all.push(Self::scalar());
        all
    }

    /// Returns the fastest set that this CPU can run.
    pub fn best() -> Self {
        Self::all()[0]
    }

    /// Returns the name of the instruction set.
    pub fn name(self) -> &'static str {
        // SAFETY: every table holds a string constant.
        unsafe { std::ffi::CStr::from_ptr(self.0.name) }.to_str().unwrap_or("unknown")
    }
}
