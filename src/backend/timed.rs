//! A backend that can say where the time goes.

use std::time::{Duration, Instant};

use super::{
    Angles, Backend, Heads, Part, PartMut, ScanInput, Visible,
    cpu::{Cpu, Memory},
    metal::Metal,
};
use crate::{
    Result,
    format::{CacheType, Matrix, Vector},
    model::weights::Layer,
};

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Products with weight matrices, the gate between two of them included.
    Matmul,
    /// Selective scan.
    Scan,
    /// Causal convolution.
    Conv,
    /// Attention, the rotation before it, and its KV rows.
    Attention,
    /// RMS norms and the average of the two kinds of heads.
    Norms,
    /// Embeddings, biases, the feed-forward's activation where it has no gate.
    Other,
}

impl Operation {
    /// All of them, with the names they are reported by.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Matmul, "matmul"),
        (Self::Scan, "scan"),
        (Self::Conv, "conv"),
        (Self::Attention, "attention"),
        (Self::Norms, "norms"),
        (Self::Other, "other"),
    ];
}

/// Time by [`Operation`], each without the time that the calling thread waited for others.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// In the order of [`Operation::ALL`].
    pub operations: [Duration; Operation::ALL.len()],
    /// How long the calling thread waited for the others.
    pub waiting: Duration,
}

/// The machine that a session works with, the GPU if it has one, else the CPU; and a stopwatch that runs when asked to.
pub struct Timed {
    cpu: Cpu,
    gpu: Option<Metal>,
    profile: Option<Profile>,
}

impl Timed {
    /// A machine; nothing is measured yet.
    pub fn new(cpu: Cpu, gpu: Option<Metal>) -> Self {
        Self { cpu, gpu, profile: None }
    }

    /// The CPU, at work or not.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// The GPU, if it is the one at work.
    pub fn gpu(&self) -> Option<&Metal> {
        self.gpu.as_ref()
    }

    fn inner(&self) -> &dyn Backend<Memory = Memory> {
        self.gpu.as_ref().map_or(&self.cpu, |gpu| gpu)
    }

    fn inner_mut(&mut self) -> &mut dyn Backend<Memory = Memory> {
        match &mut self.gpu {
            Some(gpu) => gpu,
            None => &mut self.cpu,
        }
    }

    /// Starts measuring anew, or stops.
    pub fn measure(&mut self, on: bool) {
        self.inner_mut().measure_waiting(on);
        self.profile = on.then(Profile::default);
    }

    /// What was measured since [`Timed::measure`]; zeros if nothing was.
    pub fn profile(&self) -> Profile {
        self.profile.clone().unwrap_or_default()
    }

    fn time(&mut self, operation: Operation, f: impl FnOnce(&mut dyn Backend<Memory = Memory>)) {
        if self.profile.is_none() {
            return f(self.inner_mut());
        }
        let machine = self.inner_mut();
        let (before, start) = (machine.waited(), Instant::now());
        f(machine);
        // What a GPU was asked for counts when it is done; an error of it is told again by the next who finishes.
        let _ = machine.finish();
        let waited = machine.waited() - before;
        if let Some(profile) = &mut self.profile {
            profile.operations[operation as usize] += start.elapsed().saturating_sub(waited);
            profile.waiting += waited;
        }
    }
}

impl Backend for Timed {
    type Memory = Memory;

    fn zeros(&self, len: usize) -> Result<Memory> {
        self.inner().zeros(len)
    }

    fn kv_rows(&self, kind: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Memory> {
        self.inner().kv_rows(kind, rows, heads, dim)
    }

    fn clear(&mut self, memory: &mut Memory) {
        self.inner_mut().clear(memory);
    }

    fn upload(&mut self, values: &[f32], memory: &mut Memory, at: usize) {
        self.inner_mut().upload(values, memory, at);
    }

    fn download(&mut self, memory: &Memory, len: usize) -> Vec<f32> {
        self.inner_mut().download(memory, len)
    }

    fn copy_rows(&mut self, from: (&Memory, usize), to: (&mut Memory, usize), rows: usize, width: usize) {
        self.time(Operation::Attention, |b| b.copy_rows(from, to, rows, width));
    }

    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, Memory>) {
        self.time(Operation::Other, |b| b.gather(table, rows, out));
    }

    fn matmul(&mut self, w: &Matrix, x: Part<'_, Memory>, out: PartMut<'_, Memory>, accumulate: bool) {
        self.time(Operation::Matmul, |b| b.matmul(w, x, out, accumulate));
    }

    fn gated_matmul(
        &mut self,
        matrices: [&Matrix; 2],
        x: Part<'_, Memory>,
        gate: PartMut<'_, Memory>,
        out: PartMut<'_, Memory>,
    ) {
        self.time(Operation::Matmul, |b| b.gated_matmul(matrices, x, gate, out));
    }

    fn add_bias(&mut self, x: PartMut<'_, Memory>, bias: &Vector) {
        self.time(Operation::Other, |b| b.add_bias(x, bias));
    }

    fn rms_norm(&mut self, x: Part<'_, Memory>, gain: &Vector, eps: f32, out: PartMut<'_, Memory>) {
        self.time(Operation::Norms, |b| b.rms_norm(x, gain, eps, out));
    }

    fn head_norm(&mut self, x: PartMut<'_, Memory>, gain: &Vector, eps: f32) {
        self.time(Operation::Norms, |b| b.head_norm(x, gain, eps));
    }

    fn rope(&mut self, x: PartMut<'_, Memory>, dim: usize, angles: &Angles) {
        self.time(Operation::Attention, |b| b.rope(x, dim, angles));
    }

    fn store_rows(&mut self, x: Part<'_, Memory>, out: &mut Memory) {
        self.time(Operation::Attention, |b| b.store_rows(x, out));
    }

    fn attention(
        &mut self,
        heads: Heads,
        q: Part<'_, Memory>,
        cache: [&Memory; 2],
        chunk: [&Memory; 2],
        visible: Visible<'_>,
        out: PartMut<'_, Memory>,
    ) {
        self.time(Operation::Attention, |b| b.attention(heads, q, cache, chunk, visible, out));
    }

    fn conv_silu(
        &mut self,
        u: Part<'_, Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut Memory,
        out: PartMut<'_, Memory>,
    ) {
        self.time(Operation::Conv, |b| b.conv_silu(u, weight, bias, state, out));
    }

    fn scan(&mut self, input: ScanInput<'_, Memory>, layer: &Layer, h: &mut Memory, out: PartMut<'_, Memory>) {
        self.time(Operation::Scan, |b| b.scan(input, layer, h, out));
    }

    fn fuse(
        &mut self,
        x: (Part<'_, Memory>, &Vector),
        y: (Part<'_, Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, Memory>,
    ) {
        self.time(Operation::Norms, |b| b.fuse(x, y, eps, out));
    }

    fn relu2(&mut self, x: PartMut<'_, Memory>) {
        self.time(Operation::Other, |b| b.relu2(x));
    }

    fn largest(&mut self, x: Part<'_, Memory>) -> f32 {
        self.inner_mut().largest(x)
    }

    fn finish(&mut self) -> Result<()> {
        self.inner_mut().finish()
    }

    fn measure_waiting(&mut self, on: bool) {
        self.inner_mut().measure_waiting(on);
    }

    fn waited(&self) -> Duration {
        self.inner().waited()
    }
}
