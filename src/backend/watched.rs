//! A backend whose products can be watched: who calibrates sees what every matrix multiplies.

use std::time::Duration;

use super::{Angles, Backend, Heads, Part, PartMut, ScanInput, Visible};
use crate::{
    Result,
    format::{CacheType, Matrix, Vector},
    model::weights::Layer,
};

/// Sees the matrix of a product, and its inputs `[tokens, cols]`, before it is computed.
pub type Watch<'a, M> = &'a mut dyn FnMut(&Matrix, &Part<'_, M>);

/// Does what `inner` does, and shows every product to `watch`.
pub struct Watched<'a, B: Backend> {
    /// The backend that works.
    pub inner: &'a mut B,
    /// Who looks.
    pub watch: Watch<'a, B::Memory>,
}

impl<B: Backend> Backend for Watched<'_, B> {
    type Memory = B::Memory;

    fn matmul(&mut self, w: &Matrix, x: Part<'_, Self::Memory>, out: PartMut<'_, Self::Memory>, accumulate: bool) {
        (self.watch)(w, &x);
        self.inner.matmul(w, x, out, accumulate);
    }

    fn gated_matmul(
        &mut self,
        matrices: [&Matrix; 2],
        x: Part<'_, Self::Memory>,
        gate: PartMut<'_, Self::Memory>,
        out: PartMut<'_, Self::Memory>,
    ) {
        matrices.into_iter().for_each(|w| (self.watch)(w, &x));
        self.inner.gated_matmul(matrices, x, gate, out);
    }

    fn zeros(&self, len: usize) -> Result<Self::Memory> {
        self.inner.zeros(len)
    }

    fn kv_rows(&self, kind: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Self::Memory> {
        self.inner.kv_rows(kind, rows, heads, dim)
    }

    fn clear(&mut self, memory: &mut Self::Memory) {
        self.inner.clear(memory);
    }

    fn upload(&mut self, values: &[f32], memory: &mut Self::Memory, at: usize) {
        self.inner.upload(values, memory, at);
    }

    fn download(&mut self, memory: &Self::Memory, len: usize) -> Vec<f32> {
        self.inner.download(memory, len)
    }

    fn copy_rows(&mut self, from: (&Self::Memory, usize), to: (&mut Self::Memory, usize), rows: usize, width: usize) {
        self.inner.copy_rows(from, to, rows, width);
    }

    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, Self::Memory>) {
        self.inner.gather(table, rows, out);
    }

    fn add_bias(&mut self, x: PartMut<'_, Self::Memory>, bias: &Vector) {
        self.inner.add_bias(x, bias);
    }

    fn rms_norm(&mut self, x: Part<'_, Self::Memory>, gain: &Vector, eps: f32, out: PartMut<'_, Self::Memory>) {
        self.inner.rms_norm(x, gain, eps, out);
    }

    fn head_norm(&mut self, x: PartMut<'_, Self::Memory>, gain: &Vector, eps: f32) {
        self.inner.head_norm(x, gain, eps);
    }

    fn rope(&mut self, x: PartMut<'_, Self::Memory>, dim: usize, angles: &Angles) {
        self.inner.rope(x, dim, angles);
    }

    fn store_rows(&mut self, x: Part<'_, Self::Memory>, out: &mut Self::Memory) {
        self.inner.store_rows(x, out);
    }

    fn attention(
        &mut self,
        heads: Heads,
        q: Part<'_, Self::Memory>,
        cache: [&Self::Memory; 2],
        chunk: [&Self::Memory; 2],
        visible: Visible<'_>,
        out: PartMut<'_, Self::Memory>,
    ) {
        self.inner.attention(heads, q, cache, chunk, visible, out);
    }

    fn conv_silu(
        &mut self,
        u: Part<'_, Self::Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut Self::Memory,
        out: PartMut<'_, Self::Memory>,
    ) {
        self.inner.conv_silu(u, weight, bias, state, out);
    }

    fn scan(
        &mut self,
        input: ScanInput<'_, Self::Memory>,
        layer: &Layer,
        h: &mut Self::Memory,
        out: PartMut<'_, Self::Memory>,
    ) {
        self.inner.scan(input, layer, h, out);
    }

    fn fuse(
        &mut self,
        a: (Part<'_, Self::Memory>, &Vector),
        b: (Part<'_, Self::Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, Self::Memory>,
    ) {
        self.inner.fuse(a, b, eps, out);
    }

    fn relu2(&mut self, x: PartMut<'_, Self::Memory>) {
        self.inner.relu2(x);
    }

    fn largest(&mut self, x: Part<'_, Self::Memory>) -> f32 {
        self.inner.largest(x)
    }

    fn finish(&mut self) -> Result<()> {
        self.inner.finish()
    }

    fn measure_waiting(&mut self, on: bool) {
        self.inner.measure_waiting(on);
    }

    fn waited(&self) -> Duration {
        self.inner.waited()
    }
}
