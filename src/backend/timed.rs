//! A backend that can say where the time goes.

use std::time::{Duration, Instant};

use super::{Angles, Backend, Heads, Kind, Part, PartMut, Run, ScanInput};
use crate::{
    Result,
    model::{Matrix, Vector, weights::Layer},
};

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Products with weight matrices.
    Matmul,
    /// Selective scan.
    Scan,
    /// Causal convolution.
    Conv,
    /// Attention, the rotation before it, and its KV rows.
    Attention,
    /// RMS norms and the average of the two kinds of heads.
    Norms,
    /// Embeddings, biases, the feed-forward's activation.
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

/// `B`, and a stopwatch that runs when asked to.
pub struct Timed<B> {
    inner: B,
    profile: Option<Profile>,
}

impl<B: Backend> Timed<B> {
    /// The same backend; nothing is measured yet.
    pub fn new(inner: B) -> Self {
        Self { inner, profile: None }
    }

    /// The backend itself.
    pub fn inner(&mut self) -> &mut B {
        &mut self.inner
    }

    /// Starts measuring anew, or stops.
    pub fn measure(&mut self, on: bool) {
        self.inner.measure_waiting(on);
        self.profile = on.then(Profile::default);
    }

    /// What was measured since [`Timed::measure`]; zeros if nothing was.
    pub fn profile(&self) -> Profile {
        self.profile.clone().unwrap_or_default()
    }

    fn time<T>(&mut self, operation: Operation, f: impl FnOnce(&mut B) -> T) -> T {
        let Some(profile) = &mut self.profile else { return f(&mut self.inner) };
        let (before, start) = (self.inner.waited(), Instant::now());
        let result = f(&mut self.inner);
        let waited = self.inner.waited() - before;
        profile.operations[operation as usize] += start.elapsed().saturating_sub(waited);
        profile.waiting += waited;
        result
    }
}

impl<B: Backend> Backend for Timed<B> {
    type Memory = B::Memory;

    fn zeros(&self, kind: Kind, len: usize) -> Result<B::Memory> {
        self.inner.zeros(kind, len)
    }

    fn clear(&mut self, memory: &mut B::Memory) {
        self.inner.clear(memory);
    }

    fn upload(&mut self, values: &[f32], memory: &mut B::Memory, at: usize) {
        self.inner.upload(values, memory, at);
    }

    fn download(&mut self, memory: &B::Memory, len: usize) -> Vec<f32> {
        self.inner.download(memory, len)
    }

    fn copy_rows(&mut self, from: (&B::Memory, usize), to: (&mut B::Memory, usize), rows: usize, width: usize) {
        self.time(Operation::Attention, |b| b.copy_rows(from, to, rows, width));
    }

    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, B::Memory>) {
        self.time(Operation::Other, |b| b.gather(table, rows, out));
    }

    fn matmul(&mut self, w: &Matrix, x: Part<'_, B::Memory>, out: PartMut<'_, B::Memory>, accumulate: bool) {
        self.time(Operation::Matmul, |b| b.matmul(w, x, out, accumulate));
    }

    fn add_bias(&mut self, x: PartMut<'_, B::Memory>, bias: &Vector) {
        self.time(Operation::Other, |b| b.add_bias(x, bias));
    }

    fn rms_norm(&mut self, x: Part<'_, B::Memory>, gain: &Vector, eps: f32, out: PartMut<'_, B::Memory>) {
        self.time(Operation::Norms, |b| b.rms_norm(x, gain, eps, out));
    }

    fn head_norm(&mut self, x: PartMut<'_, B::Memory>, gain: &Vector, eps: f32) {
        self.time(Operation::Norms, |b| b.head_norm(x, gain, eps));
    }

    fn rope(&mut self, x: PartMut<'_, B::Memory>, dim: usize, angles: &Angles) {
        self.time(Operation::Attention, |b| b.rope(x, dim, angles));
    }

    fn store_rows(&mut self, x: Part<'_, B::Memory>, out: &mut B::Memory) {
        self.time(Operation::Attention, |b| b.store_rows(x, out));
    }

    fn attention(
        &mut self,
        heads: Heads,
        q: Part<'_, B::Memory>,
        cache: [&B::Memory; 2],
        chunk: [&B::Memory; 2],
        visible: &[[Run; 4]],
        out: PartMut<'_, B::Memory>,
    ) {
        self.time(Operation::Attention, |b| b.attention(heads, q, cache, chunk, visible, out));
    }

    fn conv_silu(
        &mut self,
        u: Part<'_, B::Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut B::Memory,
        out: PartMut<'_, B::Memory>,
    ) {
        self.time(Operation::Conv, |b| b.conv_silu(u, weight, bias, state, out));
    }

    fn scan(&mut self, input: ScanInput<'_, B::Memory>, layer: &Layer, h: &mut B::Memory, out: PartMut<'_, B::Memory>) {
        self.time(Operation::Scan, |b| b.scan(input, layer, h, out));
    }

    fn fuse(
        &mut self,
        x: (Part<'_, B::Memory>, &Vector),
        y: (Part<'_, B::Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, B::Memory>,
    ) {
        self.time(Operation::Norms, |b| b.fuse(x, y, eps, out));
    }

    fn silu_mul(&mut self, gate: Part<'_, B::Memory>, up: PartMut<'_, B::Memory>) {
        self.time(Operation::Other, |b| b.silu_mul(gate, up));
    }

    fn relu2(&mut self, x: PartMut<'_, B::Memory>) {
        self.time(Operation::Other, |b| b.relu2(x));
    }

    fn measure_waiting(&mut self, on: bool) {
        self.inner.measure_waiting(on);
    }

    fn waited(&self) -> Duration {
        self.inner.waited()
    }
}
