//! The operations of the forward pass as data, and the traits of backends.

use super::Buffer;
use crate::{
    Result,
    format::{CacheType, Matrix, Vector},
};

/// A view of activations: some columns of some rows; each row is a token.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    /// The matrix, row-major.
    pub buffer: &'a Buffer,
    /// Number of rows.
    pub rows: usize,
    /// Index of the first value: first row · stride + first column.
    pub start: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between rows, in values.
    pub stride: usize,
}

/// A mutable [`MatRef`].
#[allow(missing_docs, reason = "the fields are those of `MatRef`")]
pub struct MatMut<'a> {
    pub buffer: &'a mut Buffer,
    pub rows: usize,
    pub start: usize,
    pub cols: usize,
    pub stride: usize,
}

/// Consecutive rows of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// Number of rows.
    pub rows: usize,
    /// Whether every row must be bit-identical to a pass of its own. Otherwise its bits may depend on the number of
    /// rows in the span, but never on other spans. On the CPU this holds for every row anyway.
    pub decode: bool,
}

/// A span of KV rows visible to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvSpan {
    /// Whether the rows belong to the chunk instead of the cache.
    pub chunk: bool,
    /// The first row.
    pub first: usize,
    /// Number of rows; 0: the span is empty.
    pub rows: usize,
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

/// Cosines and sines of the rotary angles `[tokens, key_dim / 2]`.
#[derive(Default)]
pub struct Angles {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// Softmax attention of token t over the rows `visible[t]` of cache and chunk.
pub struct Attention<'a> {
    /// The sizes of the heads.
    pub heads: Heads,
    /// Rotated queries `[tokens, heads * key_dim]`.
    pub q: MatRef<'a>,
    /// Keys and values of previous tokens.
    pub cache: [&'a Buffer; 2],
    /// Keys and values of the chunk.
    pub chunk: [&'a Buffer; 2],
    /// The visible rows of each token, in order of position.
    pub visible: &'a [[KvSpan; 4]],
    /// The position of the chunk's first token.
    pub position: usize,
    /// As in [`RowSpan`].
    pub decode: bool,
    /// `[tokens, heads * value_dim]`
    pub out: MatMut<'a>,
}

/// The activations read by the selective scan.
pub struct ScanInput<'a> {
    /// Δ before bias and softplus `[tokens, inner]`.
    pub dt: MatRef<'a>,
    /// The convolution's output `[tokens, inner]`.
    pub u: MatRef<'a>,
    /// `[tokens, inner]`
    pub gate: MatRef<'a>,
    /// B `[tokens, state]`.
    pub b: MatRef<'a>,
    /// C `[tokens, state]`.
    pub c: MatRef<'a>,
}

/// A state that an operation reads from one buffer and writes to another.
pub struct StateUpdate<'a> {
    /// The state before the first token.
    pub from: &'a Buffer,
    /// The state after the last.
    pub to: &'a mut Buffer,
}

/// The weights of the selective scan.
pub struct ScanWeights<'a> {
    /// Bias of Δ `[inner]`.
    pub dt_bias: &'a Vector,
    /// A `[inner, state]`.
    pub a: &'a Vector,
    /// D `[inner]`.
    pub d: &'a Vector,
}

/// An operation. Shapes are checked when a model is opened, so a mismatch is a bug and may panic.
#[allow(missing_docs, reason = "a variant's formula names its fields")]
pub enum Op<'a> {
    /// Decodes row `rows[i]` of the table to row i of `out`.
    Gather { table: &'a Matrix, rows: &'a [u32], out: MatMut<'a> },
    /// out\[t\] = or += W·x\[t\]; `spans` cover all rows.
    MatMul { w: &'a Matrix, x: MatRef<'a>, out: MatMut<'a>, accumulate: bool, spans: &'a [RowSpan] },
    /// out\[t\] = silu(gate\[t\]) ⊙ U·x\[t\] with gate\[t\] = G·x\[t\]; `w` is G and U, of equal shape.
    GatedMatMul { w: [&'a Matrix; 2], x: MatRef<'a>, gate: MatMut<'a>, out: MatMut<'a>, spans: &'a [RowSpan] },
    /// x\[t\] += bias
    AddBias { x: MatMut<'a>, bias: &'a Vector },
    /// out\[t\] = x\[t\] / √(mean(x\[t\]²) + eps) ⊙ gain
    RmsNorm { x: MatRef<'a>, gain: &'a Vector, eps: f32, out: MatMut<'a> },
    /// RMSNorm of each head of `gain.len()` columns, in place.
    HeadNorm { x: MatMut<'a>, gain: &'a Vector, eps: f32 },
    /// Rotates the pairs (j, j + dim/2) of each head of `dim` columns, in place.
    Rope { x: MatMut<'a>, dim: usize, angles: &'a Angles },
    /// Replaces all rows of the buffer by x, converted to the buffer's type and packed.
    StoreRows { x: MatRef<'a>, out: &'a mut Buffer },
    /// Copies `rows` rows of `width` values between buffers of the same type, each from a given row.
    CopyRows { from: (&'a Buffer, usize), to: (&'a mut Buffer, usize), rows: usize, width: usize },
    /// See [`Attention`].
    Attention(Attention<'a>),
    /// out = silu(causal convolution of u) after the inputs in `state` `[taps − 1, inner]`.
    Conv { u: MatRef<'a>, weight: &'a Vector, bias: Option<&'a Vector>, state: StateUpdate<'a>, out: MatMut<'a> },
    /// h = exp(ΔA)·h + Δ·u·B; out = (h·C + D·u) ⊙ silu(gate), with Δ = softplus(dt + bias); `state` is h `[inner, state]`.
    Scan { input: ScanInput<'a>, weights: ScanWeights<'a>, state: StateUpdate<'a>, out: MatMut<'a> },
    /// out = ½·(RMSNorm(a) + RMSNorm(b)), each with its gain.
    Fuse { a: (MatRef<'a>, &'a Vector), b: (MatRef<'a>, &'a Vector), eps: f32, out: MatMut<'a> },
    /// x = relu(x)²
    Relu2 { x: MatMut<'a> },
}

/// Categories of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Matrix products, including the gating between two of them.
    Matmul,
    /// Selective scan.
    Scan,
    /// Causal convolution.
    Conv,
    /// Attention, rotary embedding, and KV rows.
    Attention,
    /// RMS norms, and averaging attention and Mamba heads.
    Norms,
    /// Embeddings, biases, and the activation of a feed-forward network without gate.
    Other,
}

impl Operation {
    /// All categories and their names in reports.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Matmul, "matmul"),
        (Self::Scan, "scan"),
        (Self::Conv, "conv"),
        (Self::Attention, "attention"),
        (Self::Norms, "norms"),
        (Self::Other, "other"),
    ];
}

impl Op<'_> {
    /// Returns the category of the operation.
    pub fn operation(&self) -> Operation {
        match self {
            Self::MatMul { .. } | Self::GatedMatMul { .. } => Operation::Matmul,
            Self::Scan { .. } => Operation::Scan,
            Self::Conv { .. } => Operation::Conv,
            Self::Attention(_) | Self::Rope { .. } | Self::StoreRows { .. } | Self::CopyRows { .. } => {
                Operation::Attention
            }
            Self::RmsNorm { .. } | Self::HeadNorm { .. } | Self::Fuse { .. } => Operation::Norms,
            Self::Gather { .. } | Self::AddBias { .. } | Self::Relu2 { .. } => Operation::Other,
        }
    }
}

/// Executes operations.
pub trait Backend {
    /// Executes `op`, or enqueues it.
    fn run(&mut self, op: Op<'_>);
    /// Returns the largest magnitude in `x`, infinity or NaN if there is one; `None` from an asynchronous backend that
    /// would have to wait.
    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32>;
    /// Waits until everything is executed: only then may buffers be read. Fails if the device failed.
    fn finish(&mut self) -> Result<()>;
}

/// A [`Backend`] that allocates and copies the memory of its operations.
pub trait Memory: Backend {
    /// Allocates `len` zeros of f32.
    fn zeros(&self, len: usize) -> Result<Buffer>;
    /// Allocates zeroed keys or values `[rows, heads, dim]` in the device's layout.
    fn kv_rows(&self, cache: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Buffer>;
    /// Sets all values to zero.
    fn clear(&mut self, buffer: &mut Buffer);
    /// Writes `values` starting at value `at`, converted to the buffer's type; keys and values in whole rows.
    fn upload(&mut self, values: &[f32], buffer: &mut Buffer, at: usize);
    /// Returns the first `len` values; keys and values in whole rows.
    fn download(&mut self, buffer: &Buffer, len: usize) -> Vec<f32>;
}

/// A backend that passes every matrix product to `watch` before it is computed, so that calibration can record the
/// inputs of each matrix.
pub struct Watched<'a> {
    /// Executes the operations.
    pub inner: &'a mut dyn Backend,
    /// Receives the matrix of a product and its input `[tokens, cols]`.
    pub watch: &'a mut dyn FnMut(&Matrix, MatRef<'_>),
}

impl Backend for Watched<'_> {
    fn run(&mut self, op: Op<'_>) {
        match &op {
            Op::MatMul { w, x, .. } => (self.watch)(w, *x),
            Op::GatedMatMul { w, x, .. } => w.iter().for_each(|w| (self.watch)(w, *x)),
            _ => {}
        }
        self.inner.run(op);
    }

    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32> {
        self.inner.max_abs(x)
    }

    fn finish(&mut self) -> Result<()> {
        self.inner.finish()
    }
}
