//! Measures the limits of the machine, with the threads and instructions of the kernels.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use super::{Cpu, STREAMS, call};
use crate::bindings as hk;

impl Cpu {
    /// Measures the read bandwidth over `bytes` in bytes per second: the best of `rounds` passes with one stream and as
    /// many with four streams per thread. If interrupted by `cancel`, the result is meaningless.
    pub fn read_bandwidth(&mut self, bytes: &[u8], rounds: usize, cancel: &AtomicBool) -> f64 {
        const PART: usize = 1 << 20;
        let kernels = self.kernels;
        let mut best = 0f64;
        for runs in [1, STREAMS].repeat(rounds) {
            let start = Instant::now();
            self.pool.run(bytes.len().div_ceil(PART), |task, _| {
                if cancel.load(Ordering::Relaxed) {
                    return;
                }
                let part = &bytes[task * PART..][..PART.min(bytes.len() - task * PART)];
                let run = part.len() / runs / 128 * 128;
                let apart = if runs > 1 { run } else { 0 };
                std::hint::black_box(call!(kernels, read(part.as_ptr().cast(), run, apart)));
            });
            best = best.max(bytes.len() as f64 / start.elapsed().as_secs_f64());
        }
        best
    }

    /// Measures 8-bit multiply-adds per second on registers, with the instructions of this set's matrix products: the
    /// best of `rounds` runs.
    pub fn int8_rate(&mut self, rounds: usize) -> f64 {
        let kernels = self.kernels;
        self.rate(rounds, |n| _ = std::hint::black_box(call!(kernels, int8_rate(n))))
    }

    /// Measures f32 multiply-adds per second on registers: the best of `rounds` runs.
    pub fn float_rate(&mut self, rounds: usize) -> f64 {
        let kernels = self.kernels;
        self.rate(rounds, |n| _ = std::hint::black_box(call!(kernels, float_rate(n))))
    }

    /// Multiply-adds per thread in a run of [`Cpu::int8_rate`] or [`Cpu::float_rate`]: a few milliseconds.
    pub const RATE_MACS: usize = 58_000 * hk::HK_ROUND as usize;

    /// Returns multiply-adds per second on all threads of a loop with [`hk::HK_ROUND`] per iteration.
    fn rate(&mut self, runs: usize, work: impl Fn(usize) + Sync) -> f64 {
        const TASKS: usize = 4; // per thread
        let (tasks, rounds) = (TASKS * self.pool.threads(), Self::RATE_MACS / TASKS / hk::HK_ROUND as usize);
        let mut best = 0f64;
        for _ in 0..runs {
            let start = Instant::now();
            self.pool.run(tasks, |_, _| work(rounds));
            best = best.max((self.pool.threads() * Self::RATE_MACS) as f64 / start.elapsed().as_secs_f64());
        }
        best
    }
}
