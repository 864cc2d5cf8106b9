//! Hymba's CPU kernels behind a safe interface.
//!
//! `c/` holds the kernels: a scalar reference of each, and SIMD versions chosen at run time by what the CPU can do.
//! [`Cpu`] is what the rest of the program uses: whole operations on matrices of activations, shapes checked, spread
//! over the threads of a [`Pool`]. Results do not depend on the number of threads.

#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
mod bindings;
mod mat;
mod ops;
mod pool;
mod types;

pub use mat::{Mat, MatMut};
pub use ops::{Attention, Conv, Cpu, KvRows, Run, Scan, Weight, WeightType};
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

    /// The plain reference; runs anywhere.
    pub fn scalar() -> Self {
        // SAFETY: the function returns the address of a constant table.
        Self(unsafe { &*bindings::hk_scalar() })
    }

    /// AVX2, FMA and F16C, if this build and this CPU have them.
    pub fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_avx2().as_ref() }.map(Self);
        }
        None
    }

    /// AVX2 and AVX-VNNI.
    pub fn avxvnni() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::avx2().is_some() && is_x86_feature_detected!("avxvnni") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_avxvnni().as_ref() }.map(Self);
        }
        None
    }

    /// AVX2 and the 256-bit part of AVX-512 with VNNI.
    pub fn avx512vnni() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::avx2().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_avx512vnni().as_ref() }.map(Self);
        }
        None
    }

    /// The same and AVX-512 VBMI.
    pub fn avx512vbmi() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Self::avx512vnni().is_some() && is_x86_feature_detected!("avx512vbmi") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_avx512vbmi().as_ref() }.map(Self);
        }
        None
    }

    /// Advanced SIMD, if this build and this CPU have it.
    pub fn neon() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_neon().as_ref() }.map(Self);
        }
        None
    }

    /// Advanced SIMD with products of four bytes.
    pub fn neon_dotprod() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if Self::neon().is_some() && std::arch::is_aarch64_feature_detected!("dotprod") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_neon_dotprod().as_ref() }.map(Self);
        }
        None
    }

    /// Advanced SIMD with products of four bytes and of small matrices.
    pub fn neon_i8mm() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if Self::neon_dotprod().is_some() && std::arch::is_aarch64_feature_detected!("i8mm") {
            // SAFETY: the function returns the address of a constant table, or null.
            return unsafe { bindings::hk_neon_i8mm().as_ref() }.map(Self);
        }
        None
    }

    /// Every set that this CPU can run, the fastest first.
    pub fn all() -> Vec<Self> {
        let x86 = [Self::avx512vbmi(), Self::avx512vnni(), Self::avxvnni(), Self::avx2()];
        let simd = x86.into_iter().chain([Self::neon_i8mm(), Self::neon_dotprod(), Self::neon()]);
        simd.flatten().chain([Self::scalar()]).collect()
    }

    /// The fastest set that this CPU can run.
    pub fn best() -> Self {
        Self::all()[0]
    }

    /// The name of the instruction set.
    pub fn name(self) -> &'static str {
        // SAFETY: every table holds a string constant.
        unsafe { std::ffi::CStr::from_ptr(self.0.name) }.to_str().unwrap_or("unknown")
    }
}
