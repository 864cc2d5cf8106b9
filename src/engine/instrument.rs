//! What a session's device can do at most, and where its time goes.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool};

use super::Session;
use crate::{
    Result,
    backend::{Cpu, Metal, Profile},
};

/// What a number of threads can do at most, in a second.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Bytes read from memory.
    pub read_bytes: f64,
    /// 8-bit multiply-adds from registers, the way the products do them.
    pub int8_macs: f64,
    /// f32 multiply-adds from registers.
    pub float_macs: f64,
}

impl Session<'_> {
    /// Returns the bytes of the cache that a decode step reads at this length of the text: the rows it sees, conv and SSM
    /// state.
    pub fn bytes_read_per_token(&self) -> u64 {
        self.model().plan().read_bytes(self.tokens(), self.cache_type())
    }

    /// Measures how many bytes a second this session's threads read from memory: from the mapped weights, all of them, as
    /// decode reads them; or, if they are few, from several times what most last-level caches hold. `cancel` ends that.
    pub fn read_bandwidth(&mut self, cancel: &AtomicBool) -> Result<f64> {
        const BEYOND_CACHES: usize = 160 << 20;
        const PASSES: usize = 2;
        let beyond_caches;
        let bytes = match self.model().bytes() {
            few if few.len() < BEYOND_CACHES => {
                beyond_caches = vec![1; BEYOND_CACHES];
                &beyond_caches
            }
            weights => weights,
        };
        self.batch.device.cpu().read_bandwidth(bytes, PASSES, cancel)
    }

    /// Measures what this session's threads can do at most. `cancel` ends that.
    pub fn roofline(&mut self, cancel: &AtomicBool) -> Result<Roofline> {
        let [int8_macs, float_macs] = self.batch.device.cpu().rates(3);
        Ok(Roofline { read_bytes: self.read_bandwidth(cancel)?, int8_macs, float_macs })
    }

    /// Returns the name of the GPU at work, if one is.
    pub fn gpu(&self) -> Option<String> {
        self.batch.device.gpu().map(Metal::name)
    }

    /// Continues with another number of threads; results stay the same.
    pub fn set_threads(&mut self, threads: NonZeroUsize) {
        *self.batch.device.cpu() = Cpu::new(threads);
    }

    /// Returns the number of threads at work.
    pub fn threads(&mut self) -> usize {
        self.batch.device.cpu().threads()
    }

    /// Returns the instruction set at work.
    pub fn kernels(&mut self) -> &'static str {
        self.batch.device.cpu().kernels()
    }

    /// Starts measuring where the time goes, or stops.
    pub fn measure(&mut self, on: bool) {
        self.batch.device.measure(on);
    }

    /// Returns where the time went since [`Session::measure`].
    pub fn profile(&self) -> Profile {
        self.batch.device.profile()
    }
}
