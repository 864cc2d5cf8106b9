//! Roofline measurements and profiling of a session's device.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool};

use super::Session;
use crate::{
    Error, Result,
    backend::{Cpu, Metal, Profile},
};

/// The hardware limits per second at the current number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Bytes read from memory.
    pub read_bytes: f64,
    /// 8-bit multiply-adds on registers, with the instructions of the matrix products.
    pub int8_macs: f64,
    /// f32 multiply-adds on registers.
    pub float_macs: f64,
}

impl Session<'_> {
    /// Returns the cache bytes that a decode step reads at the current length: visible rows, conv and SSM state.
    pub fn bytes_read_per_token(&self) -> u64 {
        self.model().plan().read_bytes(self.tokens(), self.cache_type())
    }

    /// Measures the read bandwidth of this session's threads in bytes per second: over all mapped weights, as in
    /// decode, or, if they are small, over several times the size of most last-level caches. `cancel` interrupts it.
    pub fn read_bandwidth(&mut self, cancel: &AtomicBool) -> Result<f64> {
        const BEYOND_CACHES: usize = 160 << 20;
        const PASSES: usize = 2;
        let weights = self.model().bytes();
        if weights.len() >= BEYOND_CACHES {
            return self.batch.device.cpu().read_bandwidth(weights, PASSES, cancel);
        }
        // Allocated in pieces, since mapping the pages may take long.
        let mut bytes = Vec::with_capacity(BEYOND_CACHES);
        while bytes.len() < BEYOND_CACHES {
            Error::check_cancelled(cancel)?;
            bytes.resize(bytes.len() + (1 << 20), 1);
        }
        self.batch.device.cpu().read_bandwidth(&bytes, PASSES, cancel)
    }

    /// Measures the roofline of this session's threads. `cancel` interrupts it.
    pub fn roofline(&mut self, cancel: &AtomicBool) -> Result<Roofline> {
        let [int8_macs, float_macs] = self.batch.device.cpu().rates(3);
        Ok(Roofline { read_bytes: self.read_bandwidth(cancel)?, int8_macs, float_macs })
    }

    /// Returns the name of the GPU in use, if any.
    pub fn gpu(&self) -> Option<String> {
        self.batch.device.gpu().map(Metal::name)
    }

    /// Changes the number of threads; results stay the same.
    pub fn set_threads(&mut self, threads: NonZeroUsize) {
        *self.batch.device.cpu() = Cpu::new(threads);
    }

    /// Returns the number of threads in use.
    pub fn threads(&mut self) -> usize {
        self.batch.device.cpu().threads()
    }

    /// Returns the instruction set in use.
    pub fn kernels(&mut self) -> &'static str {
        self.batch.device.cpu().kernels()
    }

    /// Starts or stops profiling.
    pub fn measure(&mut self, on: bool) {
        self.batch.device.measure(on);
    }

    /// Returns the profile since [`Session::measure`].
    pub fn profile(&self) -> Profile {
        self.batch.device.profile()
    }
}
