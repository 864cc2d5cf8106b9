//! What the forward pass asks of a machine: a few coarse operations on activations in the machine's own memory.
//! [`cpu`] is one, [`metal`] another; the model is written once for all of them.

pub mod cpu;
pub mod metal;
pub mod timed;
pub mod watched;

use std::time::Duration;

use crate::{
    Result,
    format::{CacheType, Matrix, Vector},
};

/// Some columns of some rows of a matrix in memory `M`; a row is a token.
pub struct Part<'a, M> {
    /// The matrix.
    pub memory: &'a M,
    /// Rows looked at.
    pub rows: usize,
    /// The first value: first row · stride + first column.
    pub start: usize,
    /// Columns looked at.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// A [`Part`] that can be written.
pub struct PartMut<'a, M> {
    /// The matrix.
    pub memory: &'a mut M,
    /// Rows looked at.
    pub rows: usize,
    /// The first value: first row · stride + first column.
    pub start: usize,
    /// Columns looked at.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// A span of KV rows that a token sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvSpan {
    /// Whether the rows are the chunk's own, or the cache's.
    pub chunk: bool,
    /// The first row.
    pub first: usize,
    /// Number of rows; 0: the span is empty.
    pub rows: usize,
}

/// The KV rows that the tokens of a chunk see.
#[derive(Clone, Copy)]
pub struct Visible<'a> {
    /// For each token, spans in order of position.
    pub spans: &'a [[KvSpan; 4]],
    /// The position of the chunk's first token.
    pub position: usize,
}

/// The sizes of the attention heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads.
    pub kv: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
}

/// cos and sin of the rotary angles `[tokens, key_dim / 2]`.
#[derive(Default)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// What the selective scan reads beside its weights.
pub struct ScanInput<'a, M> {
    /// Δ before bias and softplus `[tokens, inner]`.
    pub dt: Part<'a, M>,
    /// The convolution's output `[tokens, inner]`.
    pub u: Part<'a, M>,
    /// `[tokens, inner]`
    pub gate: Part<'a, M>,
    /// B `[tokens, state]`.
    pub b: Part<'a, M>,
    /// C `[tokens, state]`.
    pub c: Part<'a, M>,
}

/// A machine that can run the model. Shapes are checked when a model is opened: an operation that is handed shapes
/// that do not fit is a bug, and may panic.
pub trait Backend {
    /// Values in the machine's memory.
    type Memory;

    /// `len` zeros of F32; a clear error if there is no room.
    fn zeros(&self, len: usize) -> Result<Self::Memory>;
    /// Room for keys or values, `[rows, heads, dim]` to whoever writes or reads rows of it, in the order that suits the
    /// machine; zeros. A clear error if there is no room.
    fn kv_rows(&self, kind: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Self::Memory>;
    /// Sets all values to zero.
    fn clear(&mut self, memory: &mut Self::Memory);
    /// Writes `values` from value `at` on, rounded to the memory's kind; whole rows of keys or values.
    fn upload(&mut self, values: &[f32], memory: &mut Self::Memory, at: usize);
    /// Reads the first `len` values; whole rows of keys or values.
    fn download(&mut self, memory: &Self::Memory, len: usize) -> Vec<f32>;
    /// Copies `rows` rows of `width` values between memories of one kind.
    fn copy_rows(&mut self, from: (&Self::Memory, usize), to: (&mut Self::Memory, usize), rows: usize, width: usize);

    /// Row `rows[i]` of the table, decoded, to row i of `out`.
    fn gather(&mut self, table: &Matrix, rows: &[u32], out: PartMut<'_, Self::Memory>);
    /// out[t] = or += W·x[t]
    fn matmul(&mut self, w: &Matrix, x: Part<'_, Self::Memory>, out: PartMut<'_, Self::Memory>, accumulate: bool);
    /// out[t] = silu(gate[t]) ⊙ U·x[t] with gate[t] = G·x[t]; the matrices are G and U, of one shape.
    fn gated_matmul(
        &mut self,
        matrices: [&Matrix; 2],
        x: Part<'_, Self::Memory>,
        gate: PartMut<'_, Self::Memory>,
        out: PartMut<'_, Self::Memory>,
    );
    /// x[t] += bias
    fn add_bias(&mut self, x: PartMut<'_, Self::Memory>, bias: &Vector);
    /// out[t] = x[t] / √(mean(x[t]²) + eps) ⊙ gain
    fn rms_norm(&mut self, x: Part<'_, Self::Memory>, gain: &Vector, eps: f32, out: PartMut<'_, Self::Memory>);
    /// RMSNorm of each head of `gain.len()` columns, in place.
    fn head_norm(&mut self, x: PartMut<'_, Self::Memory>, gain: &Vector, eps: f32);
    /// Rotates the pairs (j, j + dim/2) of each head of `dim` columns, in place.
    fn rope(&mut self, x: PartMut<'_, Self::Memory>, dim: usize, angles: &Angles);
    /// x as keys or values of the memory's kind, which then holds no other rows.
    fn store_rows(&mut self, x: Part<'_, Self::Memory>, out: &mut Self::Memory);
    /// Softmax attention of token t over the rows `visible.spans[t]` of (cache, chunk); keys first, then values.
    fn attention(
        &mut self,
        heads: Heads,
        q: Part<'_, Self::Memory>,
        cache: [&Self::Memory; 2],
        chunk: [&Self::Memory; 2],
        visible: Visible<'_>,
        out: PartMut<'_, Self::Memory>,
    );
    /// out = silu(causal convolution of u); state `[taps − 1, inner]` is carried on.
    fn conv_silu(
        &mut self,
        u: Part<'_, Self::Memory>,
        weight: &Vector,
        bias: Option<&Vector>,
        state: &mut Self::Memory,
        out: PartMut<'_, Self::Memory>,
    );
    /// h = exp(ΔA)·h + Δ·u·B; out = (h·C + D·u) ⊙ silu(gate), with Δ = softplus(dt + bias); h `[inner, state]`.
    fn scan(
        &mut self,
        input: ScanInput<'_, Self::Memory>,
        layer: &crate::model::weights::Layer,
        h: &mut Self::Memory,
        out: PartMut<'_, Self::Memory>,
    );
    /// out = ½·(RMSNorm(a; gain_a) + RMSNorm(b; gain_b))
    fn fuse(
        &mut self,
        a: (Part<'_, Self::Memory>, &Vector),
        b: (Part<'_, Self::Memory>, &Vector),
        eps: f32,
        out: PartMut<'_, Self::Memory>,
    );
    /// x = relu(x)²
    fn relu2(&mut self, x: PartMut<'_, Self::Memory>);

    /// The largest magnitude in x; infinity or NaN if there is one. A machine that is still at work does not say: 0.
    fn largest(&mut self, _x: Part<'_, Self::Memory>) -> f32 {
        0.0
    }

    /// Waits until all that was asked for is done: only then may memory be looked at. An error if the machine failed.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Starts, or ends, measuring how long the calling thread waits for others.
    fn measure_waiting(&mut self, on: bool);
    /// How long it has waited since.
    fn waited(&self) -> Duration;
}
