//! Typed views of a file's tensors in the memory map.

use std::collections::HashMap;

use super::{
    config::Config,
    tensors::{Spec, specs},
};
use crate::{
    Error, Result,
    format::{
        Matrix, Vector,
        gguf::{Gguf, Tensor},
    },
};

/// The feed-forward part of a layer.
#[derive(Clone)]
pub struct FeedForward {
    /// `[hidden]`
    pub norm: Vector,
    /// `[ffn, hidden]`; absent with relu².
    pub gate: Option<Matrix>,
    /// `[ffn, hidden]`
    pub up: Matrix,
    /// `[hidden, ffn]`
    pub down: Matrix,
}

/// The norms on Δ, B and C.
#[derive(Clone)]
pub struct DtBcNorm {
    /// `[dt_rank]`
    pub dt: Vector,
    /// `[state]`
    pub b: Vector,
    /// `[state]`
    pub c: Vector,
}

/// One layer: attention heads and Mamba heads side by side, then the feed-forward part.
#[derive(Clone)]
pub struct Layer {
    /// Norm of the layer's input `[hidden]`.
    pub norm: Vector,
    /// `[q|k|v|u|gate, hidden]` in producers, `[q|u|gate, hidden]` in consumers.
    pub in_proj: Matrix,
    /// One value per row of `in_proj`.
    pub in_proj_bias: Option<Vector>,
    /// Per-head norm of queries `[key_dim]`.
    pub q_norm: Option<Vector>,
    /// Per-head norm of keys `[key_dim]`.
    pub k_norm: Option<Vector>,
    /// `[inner, conv_kernel]`
    pub conv: Vector,
    /// `[inner]`
    pub conv_bias: Option<Vector>,
    /// `[dt_rank + 2·state, inner]`: Δ's low-rank form, B and C.
    pub x_proj: Matrix,
    /// Norms of x_proj's outputs.
    pub dt_bc_norm: Option<DtBcNorm>,
    /// `[inner, dt_rank]`
    pub dt_proj: Matrix,
    /// `[inner]`
    pub dt_bias: Vector,
    /// A = −exp(A_log) `[inner, state]`.
    pub a: Vector,
    /// D `[inner]`.
    pub d: Vector,
    /// Norm of the attention heads' output `[inner]`.
    pub attn_out_norm: Vector,
    /// Norm of the Mamba heads' output `[inner]`.
    pub ssm_out_norm: Vector,
    /// `[hidden, inner]`
    pub out_proj: Matrix,
    /// `[hidden]`
    pub out_proj_bias: Option<Vector>,
    /// Absent if the feed-forward width is 0.
    pub feed_forward: Option<FeedForward>,
}

impl Layer {
    /// Returns all matrices of the layer.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let ffn = self.feed_forward.iter().flat_map(|f| f.gate.iter().chain([&f.up, &f.down]));
        [&self.in_proj, &self.x_proj, &self.dt_proj, &self.out_proj].into_iter().chain(ffn)
    }

    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let ffn = self.feed_forward.iter_mut().flat_map(|f| f.gate.iter_mut().chain([&mut f.up, &mut f.down]));
        [&mut self.in_proj, &mut self.x_proj, &mut self.dt_proj, &mut self.out_proj].into_iter().chain(ffn)
    }
}

/// All weights of a model.
#[derive(Clone)]
pub struct Weights {
    /// `[vocab, hidden]`
    pub token_embd: Matrix,
    /// `[meta_tokens, hidden]`
    pub meta_embd: Option<Matrix>,
    /// One per layer.
    pub layers: Vec<Layer>,
    /// `[hidden]`
    pub output_norm: Vector,
    /// `[vocab, hidden]`; absent if tied to `token_embd`.
    pub output: Option<Matrix>,
}

impl Weights {
    /// Finds all tensors of a model of these sizes in `gguf`, and checks their shapes and types.
    pub fn from_gguf(gguf: &Gguf, config: &Config) -> Result<Self> {
        let find = Finder::new(gguf, config);
        Ok(Self {
            token_embd: find.matrix("token_embd.weight")?,
            meta_embd: find.maybe("meta_embd.weight", |n| find.matrix(n))?,
            layers: (0..config.layers).map(|layer| find.layer(layer)).collect::<Result<_>>()?,
            output_norm: find.vector("output_norm.weight")?,
            output: find.maybe("output.weight", |n| find.matrix(n))?,
        })
    }

    /// Returns all matrices.
    pub(crate) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let layers = self.layers.iter_mut().flat_map(Layer::matrices_mut);
        [&mut self.token_embd].into_iter().chain(&mut self.meta_embd).chain(layers).chain(&mut self.output)
    }

    /// Returns the output matrix.
    pub fn head(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.token_embd)
    }

    /// Returns the multiply-adds per token of the products with the layers' matrices.
    pub fn macs_per_token(&self) -> u64 {
        self.layers.iter().flat_map(Layer::matrices).map(|m| (m.rows * m.cols) as u64).sum()
    }
}

/// Finds a model's tensors in a file, which may contain only part of the model, and checks their shapes and types.
pub(crate) struct Finder<'a> {
    gguf: &'a Gguf,
    config: &'a Config,
    specs: HashMap<String, Spec>,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(gguf: &'a Gguf, config: &'a Config) -> Self {
        Self { gguf, config, specs: specs(config).into_iter().map(|s| (s.name.clone(), s)).collect() }
    }

    /// Returns layer `i`.
    pub(crate) fn layer(&self, i: usize) -> Result<Layer> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let matrix = |part: &str| self.matrix(&name(part));
        let vector = |part: &str| self.vector(&name(part));
        let maybe = |part: &str| self.maybe(&name(part), |n| self.vector(n));
        let dt_bc_norm = || -> Result<_> {
            let [dt, b, c] = ["ssm_dt_norm.weight", "ssm_b_norm.weight", "ssm_c_norm.weight"].map(vector);
            Ok(DtBcNorm { dt: dt?, b: b?, c: c? })
        };
        let feed_forward = || -> Result<_> {
            let norm = vector("ffn_norm.weight")?;
            let gate = self.maybe(&name("ffn_gate.weight"), |n| self.matrix(n))?;
            Ok(FeedForward { norm, gate, up: matrix("ffn_up.weight")?, down: matrix("ffn_down.weight")? })
        };
        Ok(Layer {
            norm: vector("attn_norm.weight")?,
            in_proj: matrix("in_proj.weight")?,
            in_proj_bias: maybe("in_proj.bias")?,
            q_norm: maybe("attn_q_norm.weight")?,
            k_norm: maybe("attn_k_norm.weight")?,
            conv: vector("ssm_conv1d.weight")?,
            conv_bias: maybe("ssm_conv1d.bias")?,
            x_proj: matrix("ssm_x.weight")?,
            dt_bc_norm: self.config.dt_b_c_norm.then(dt_bc_norm).transpose()?,
            dt_proj: matrix("ssm_dt.weight")?,
            dt_bias: vector("ssm_dt.bias")?,
            a: vector("ssm_a")?,
            d: vector("ssm_d")?,
            attn_out_norm: vector("attn_out_norm.weight")?,
            ssm_out_norm: vector("ssm_out_norm.weight")?,
            out_proj: matrix("out_proj.weight")?,
            out_proj_bias: maybe("out_proj.bias")?,
            feed_forward: (self.config.ffn > 0).then(feed_forward).transpose()?,
        })
    }

    /// Returns the tensor and its id; fails unless it has the shape of its spec.
    fn checked(&self, name: &str) -> Result<(usize, &Tensor)> {
        let bad = |problem: String| Error::model(&self.gguf.file, problem);
        let spec = self.specs.get(name).ok_or_else(|| bad(format!("has no place for a tensor `{name}`")))?;
        let missing = || bad(format!("has no tensor `{name}`: the file is incomplete"));
        let tensor = self.gguf.tensor(name).ok_or_else(missing)?;
        if tensor.dims != spec.shape {
            return Err(bad(format!(
                "tensor `{name}` has shape {:?}, but its metadata requires {:?}",
                tensor.dims, spec.shape
            )));
        }
        Ok((spec.id, tensor))
    }

    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix> {
        let (id, Tensor { dtype, packing, dims, data, .. }) = self.checked(name)?;
        let (rows, cols) = (dims[0], dims[1]); // a matrix's, as its spec has them
        Ok(Matrix { id, dtype: *dtype, packing: *packing, rows, cols, data: data.clone() })
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Vector> {
        Vector::new(&self.gguf.file, self.checked(name)?.1)
    }

    /// Returns the tensor; `None` if the model does not have it, or if it is optional and absent from the file.
    fn maybe<T>(&self, name: &str, read: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
        match self.specs.get(name) {
            None => Ok(None),
            Some(spec) if spec.optional && self.gguf.tensor(name).is_none() => Ok(None),
            Some(_) => read(name).map(Some),
        }
    }
}
