//! The options of a scheduler.

use std::path::PathBuf;

use crate::{
    Error,
    engine::{SessionOptions, speculate::Speculate},
};

/// The options of a scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Device, threads, KV cache type, and the context size of each sequence.
    pub session: SessionOptions,
    /// Maximum number of running jobs.
    pub slots: usize,
    /// Maximum number of jobs in the queue, in addition to the running ones.
    pub queue: usize,
    /// Speculative decoding.
    pub speculate: Speculate,
    /// Maximum bytes of prefix states; 0 disables them. The default is a quarter of the free memory, at most 4 GB.
    pub cache_memory: Option<usize>,
    /// A folder in which prefix states survive restarts.
    pub cache_folder: Option<PathBuf>,
    /// Called when writing to the folder fails; it is not written to any more.
    pub cache_failed: fn(&Error),
    /// Whether to measure the read bandwidth at the start, for [`Metrics::read_limit`](super::Metrics::read_limit).
    pub measure: bool,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        let (session, speculate) = (SessionOptions::default(), Speculate::default());
        let (cache_memory, cache_folder) = (None, None);
        Self {
            session,
            slots: 4,
            queue: 64,
            speculate,
            cache_memory,
            cache_folder,
            cache_failed: |_| (),
            measure: false,
        }
    }
}
