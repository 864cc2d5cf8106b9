//! How a scheduler is set up.

use std::path::PathBuf;

use crate::engine::{SessionOptions, speculate::Speculate};

/// How a scheduler is set up.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Device, threads, KV cache, and the tokens that fit into each text.
    pub session: SessionOptions,
    /// Texts at work at once.
    pub slots: usize,
    /// Jobs that wait at most, beside those at work.
    pub queue: usize,
    /// How many guesses are read with a token of a text that is at work alone.
    pub speculate: Speculate,
    /// Bytes that prefix states take at most, 0: there are none; by default a quarter of the free memory, at most 4 GB.
    pub cache_memory: Option<usize>,
    /// A folder in which prefix states survive a restart.
    pub cache_folder: Option<PathBuf>,
    /// Whether to measure at the start what the threads can read, for [`Metrics::read_limit`](super::Metrics::read_limit).
    pub measure: bool,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        let (session, speculate) = (SessionOptions::default(), Speculate::default());
        Self { session, slots: 4, queue: 64, speculate, cache_memory: None, cache_folder: None, measure: false }
    }
}
