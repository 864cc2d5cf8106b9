//! How a scheduler is set up.

use crate::engine::SessionOptions;

/// How a scheduler is set up.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Device, threads, KV cache, and the tokens that fit into each text.
    pub session: SessionOptions,
    /// Texts at work at once.
    pub slots: usize,
    /// Jobs that wait at most, beside those at work.
    pub queue: usize,
    /// Whether to measure at the start what the threads can read, for [`Metrics::read_limit`].
    pub measure: bool,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { session: SessionOptions::default(), slots: 4, queue: 64, measure: false }
    }
}
