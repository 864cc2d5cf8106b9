//! The operations of the forward pass as data, and the traits of what executes them.

use super::Buffer;
use crate::{
    Result,
    format::{CacheType, Matrix, Vector},
};

/// Some columns of some rows of a matrix of activations; a row is a token.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    /// The matrix, row-major.
    pub buffer: &'a Buffer,
    /// Rows of the view.
    pub rows: usize,
    /// The first value: first row · stride + first column.
    pub start: usize,
    /// Columns of the view.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// A [`MatRef`] that can be written.
#[allow(missing_docs, reason = "the fields are those of `MatRef`")]
pub struct MatMut<'a> {
    pub buffer: &'a mut Buffer,
    pub rows: usize,
    pub start: usize,
    pub cols: usize,
    pub stride: usize,
}

/// Rows of a pass that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// Number of rows.
    pub rows: usize,
    /// Whether every row has the bits that it has alone. Else they may depend on how many rows the span has; never on
    /// other spans. On the CPU every row has them anyway.
    pub decode: bool,
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

/// Softmax attention of token t over the rows `visible[t]` of cache and chunk.
pub struct Attention<'a> {
    /// The sizes of the heads.
    pub heads: Heads,
    /// Queries, rotated `[tokens, heads * key_dim]`.
    pub q: MatRef<'a>,
    /// Keys and values of earlier tokens.
    pub cache: [&'a Buffer; 2],
    /// Keys and values of the chunk's own tokens.
    pub chunk: [&'a Buffer; 2],
    /// For each token, the rows that it sees, in order of position.
    pub visible: &'a [[KvSpan; 4]],
    /// The position of the chunk's first token.
    pub position: usize,
    /// As in [`RowSpan`].
    pub decode: bool,
    /// `[tokens, heads * value_dim]`
    pub out: MatMut<'a>,
}

/// The activations that the selective scan reads.
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

/// A state that an operation carries on: read in one buffer, written to another.
pub struct Carried<'a> {
    /// The state before the first token.
    pub from: &'a Buffer,
    /// The state after the last.
    pub to: &'a mut Buffer,
}

/// The weights of the selective scan.
pub struct ScanWeights<'a> {
    /// Δ's bias `[inner]`.
    pub dt_bias: &'a Vector,
    /// A `[inner, state]`.
    pub a: &'a Vector,
    /// D `[inner]`.
    pub d: &'a Vector,
}

/// An operation. Shapes are checked when a model is opened: an operation whose shapes do not fit is a bug, and may panic.
#[allow(missing_docs, reason = "a variant's formula names its fields")]
pub enum Op<'a> {
    /// Row `rows[i]` of the table, decoded, to row i of `out`.
    Gather { table: &'a Matrix, rows: &'a [u32], out: MatMut<'a> },
    /// out\[t\] = or += W·x\[t\]; `spans` are all rows.
    MatMul { w: &'a Matrix, x: MatRef<'a>, out: MatMut<'a>, accumulate: bool, spans: &'a [RowSpan] },
    /// out\[t\] = silu(gate\[t\]) ⊙ U·x\[t\] with gate\[t\] = G·x\[t\]; `w` is G and U, of one shape.
    GatedMatMul { w: [&'a Matrix; 2], x: MatRef<'a>, gate: MatMut<'a>, out: MatMut<'a>, spans: &'a [RowSpan] },
    /// x\[t\] += bias
    AddBias { x: MatMut<'a>, bias: &'a Vector },
    /// out\[t\] = x\[t\] / √(mean(x\[t\]²) + eps) ⊙ gain
    RmsNorm { x: MatRef<'a>, gain: &'a Vector, eps: f32, out: MatMut<'a> },
    /// RMSNorm of each head of `gain.len()` columns, in place.
    HeadNorm { x: MatMut<'a>, gain: &'a Vector, eps: f32 },
    /// Rotates the pairs (j, j + dim/2) of each head of `dim` columns, in place.
    Rope { x: MatMut<'a>, dim: usize, angles: &'a Angles },
    /// x as rows of the buffer's type, close together; keys or values then hold no other rows.
    StoreRows { x: MatRef<'a>, out: &'a mut Buffer },
    /// Copies `rows` rows of `width` values from a row of one buffer to a row of another of its type.
    CopyRows { from: (&'a Buffer, usize), to: (&'a mut Buffer, usize), rows: usize, width: usize },
    /// See [`Attention`].
    Attention(Attention<'a>),
    /// out = silu(causal convolution of u) after the inputs in `state` `[taps − 1, inner]`.
    Conv { u: MatRef<'a>, weight: &'a Vector, bias: Option<&'a Vector>, state: Carried<'a>, out: MatMut<'a> },
    /// h = exp(ΔA)·h + Δ·u·B; out = (h·C + D·u) ⊙ silu(gate), with Δ = softplus(dt + bias); `state` is h `[inner, state]`.
    Scan { input: ScanInput<'a>, weights: ScanWeights<'a>, state: Carried<'a>, out: MatMut<'a> },
    /// out = ½·(RMSNorm(a) + RMSNorm(b)), each with its gain.
    Fuse { a: (MatRef<'a>, &'a Vector), b: (MatRef<'a>, &'a Vector), eps: f32, out: MatMut<'a> },
    /// x = relu(x)²
    Relu2 { x: MatMut<'a> },
}

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
    /// Every kind, with the name that it is reported by.
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
    /// Returns the kind of operation, by which time is reported.
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
    /// Returns the largest magnitude in `x`, infinity or NaN if there is one; `None` if that would wait for a machine that
    /// is still at work.
    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32>;
    /// Waits until everything is executed: only then may buffers be read. An error if the machine failed.
    fn finish(&mut self) -> Result<()>;
}

/// A [`Backend`] with the memory that its operations work on.
pub trait Memory: Backend {
    /// Returns `len` zeros of F32; an error if there is no room.
    fn zeros(&self, len: usize) -> Result<Buffer>;
    /// Returns zeroed room for keys or values `[rows, heads, dim]`, in the order that suits the machine; an error if there
    /// is not enough room.
    fn kv_rows(&self, cache: CacheType, rows: usize, heads: usize, dim: usize) -> Result<Buffer>;
    /// Sets all values to zero.
    fn clear(&mut self, buffer: &mut Buffer);
    /// Writes `values` from value `at` on, rounded to the buffer's type; whole rows of keys or values.
    fn upload(&mut self, values: &[f32], buffer: &mut Buffer, at: usize);
    /// Returns the first `len` values; whole rows of keys or values.
    fn download(&mut self, buffer: &Buffer, len: usize) -> Vec<f32>;
}

/// A backend that shows every product to `watch` before it is computed: calibration sees what each matrix multiplies.
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
