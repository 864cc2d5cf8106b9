//! What the machine can do at most, by the same threads and instructions.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use super::{Cpu, STREAMS, call};
use crate::bindings as hk;

impl Cpu {
    /// Bytes a second that these threads read from `bytes`: the best of `rounds` passes over all of it at one place after
    /// another, and of as many at four places at once. `cancel` ends that: what is returned then means nothing.
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

    /// 8-bit multiply-adds a second that these threads do from registers, the way this instruction set's products do
    /// them: the best of `rounds` runs.
    pub fn int8_rate(&mut self, rounds: usize) -> f64 {
        let kernels = self.kernels;
        self.rate(rounds, |n| _ = std::hint::black_box(call!(kernels, int8_rate(n))))
    }

    /// f32 multiply-adds a second that these threads do from registers: the best of `rounds` runs.
    pub fn float_rate(&mut self, rounds: usize) -> f64 {
        let kernels = self.kernels;
        self.rate(rounds, |n| _ = std::hint::black_box(call!(kernels, float_rate(n))))
    }

    /// Multiply-adds that each thread does in a run of [`Cpu::int8_rate`] or [`Cpu::float_rate`]: a few milliseconds.
    pub const RATE_MACS: usize = 58_000 * hk::HK_ROUND as usize;

    /// Multiply-adds a second of a loop that does [`hk::HK_ROUND`] a round, on all threads.
    fn rate(&mut self, runs: usize, work: impl Fn(usize) + Sync) -> f64 {
        const TASKS: usize = 4; // a thread
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
