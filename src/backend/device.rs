//! The device of a session, CPU or GPU, with profiling.

use std::{
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use super::{Backend, Buffer, Cpu, MatRef, Memory, Metal, Op, Operation};
use crate::{Result, format::CacheType};

/// The choice of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of a Mac; an error if there is none.
    Metal,
    /// The GPU of a Mac if there is one that can run the model, otherwise the CPU.
    Auto,
}

/// Returns the backends of this machine, each with a description.
pub fn devices() -> Vec<(&'static str, String)> {
    let cpu = Device::cpu_only(None).cpu;
    let cpu = format!("{} threads, {} kernels", cpu.threads(), cpu.kernels());
    let gpus = Metal::names().into_iter().map(|name| ("metal", name));
    [("cpu", cpu)].into_iter().chain(gpus).collect()
}

/// Time by [`Operation`], without the time that the calling thread waited for others.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// In the order of [`Operation::ALL`].
    pub operations: [Duration; Operation::ALL.len()],
    /// Time that the calling thread waited for the others.
    pub waiting: Duration,
}

impl Profile {
    /// Adds an operation that took `elapsed`, of which the calling thread waited `waited`.
    fn add(&mut self, operation: Operation, elapsed: Duration, waited: Duration) {
        self.operations[operation as usize] += elapsed.saturating_sub(waited);
        self.waiting += waited;
    }
}

/// The CPU or a GPU, with an optional profile.
pub struct Device {
    cpu: Cpu,
    gpu: Option<Metal>,
    profile: Option<Profile>,
}

impl Device {
    /// Returns a device that uses `gpu` if given, without profiling.
    pub fn new(cpu: Cpu, gpu: Option<Metal>) -> Self {
        Self { cpu, gpu, profile: None }
    }

    /// Returns the CPU, by default with one thread per core available to the process.
    pub fn cpu_only(threads: Option<NonZeroUsize>) -> Self {
        let cores = || thread::available_parallelism().ok();
        Self::new(Cpu::new(threads.or_else(cores).unwrap_or(NonZeroUsize::MIN)), None)
    }

    /// Returns the CPU, even if a GPU is in use.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Returns the GPU in use, if any.
    pub fn gpu(&self) -> Option<&Metal> {
        self.gpu.as_ref()
    }

    /// Starts a new profile, or stops profiling.
    pub fn measure(&mut self, on: bool) {
        self.cpu.measure_waiting(on);
        self.profile = on.then(Profile::default);
    }

    /// Returns the profile since [`Device::measure`]; zeros if there is none.
    pub fn profile(&self) -> Profile {
        self.profile.clone().unwrap_or_default()
    }

    fn active(&mut self) -> &mut dyn Memory {
        match &mut self.gpu {
            Some(gpu) => gpu,
            None => &mut self.cpu,
        }
    }

    /// Returns how long the calling thread has waited for other threads; zero for a GPU.
    fn waited(&self) -> Duration {
        if self.gpu.is_some() { Duration::ZERO } else { self.cpu.waited() }
    }
}

impl Backend for Device {
    fn run(&mut self, op: Op<'_>) {
        if self.profile.is_none() {
            return self.active().run(op);
        }
        let (operation, before, start) = (op.operation(), self.waited(), Instant::now());
        self.active().run(op);
        // Includes what a GPU has enqueued; an error is reported again by the next call.
        let _ = self.active().finish();
        let waited = self.waited() - before;
        if let Some(profile) = &mut self.profile {
            profile.add(operation, start.elapsed(), waited);
        }
    }

    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32> {
        self.active().max_abs(x)
    }

    fn finish(&mut self) -> Result<()> {
        self.active().finish()
    }
}

impl Memory for Device {
    fn zeros(&self, len: usize) -> Result<Buffer> {
        self.gpu.as_ref().map_or_else(|| self.cpu.zeros(len), |gpu| gpu.zeros(len))
    }

    fn kv_rows(&self, cache: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Buffer> {
        match &self.gpu {
            Some(gpu) => gpu.kv_rows(cache, rows, heads, dim),
            None => self.cpu.kv_rows(cache, rows, heads, dim),
        }
    }

    fn clear(&mut self, buffer: &mut Buffer) {
        self.active().clear(buffer);
    }

    fn upload(&mut self, values: &[f32], buffer: &mut Buffer, at: usize) {
        self.active().upload(values, buffer, at);
    }

    fn download(&mut self, buffer: &Buffer, len: usize) -> Vec<f32> {
        self.active().download(buffer, len)
    }
}
