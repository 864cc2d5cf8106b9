//! One chunk of tokens on its way through the model.

use std::ops::Range;

use super::Scratch;
use crate::{
    Error, Result,
    backend::{Attention, Backend, Buffer, Heads, KvSpan, Op, ScanInput, ScanWeights},
    format::Matrix,
    model::{Config, Weights, weights::Layer},
    state::State,
};

/// Tokens of a prompt that one pass reads: whole tiles (of 5, 8 and 12 tokens) of every kernel.
pub const CHUNK: usize = 240;

/// The epsilon of the per-head norms, fixed in the official code.
const HEAD_NORM_EPS: f32 = 1e-6;

/// Which positions a windowed layer sees; the official code has a rule for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading a prompt: W positions back, W + 1 with oneself.
    Prefill,
    /// Generating: W − 1 positions back, W with oneself.
    Decode,
}

/// A layer's outputs for one chunk, passed to an [`Observer`].
pub struct LayerView<'a> {
    /// Which layer.
    pub layer: usize,
    /// After both residual additions `[tokens, hidden]`.
    pub hidden: &'a Buffer,
    /// The attention heads' output before its norm `[tokens, inner]`.
    pub attention: &'a Buffer,
    /// The Mamba heads' output before its norm `[tokens, inner]`.
    pub mamba: &'a Buffer,
}

/// Receives every layer's outputs; its error ends the pass, after which the state is undefined.
pub type Observer<'a> = &'a mut dyn FnMut(LayerView<'_>) -> Result<()>;

/// What a chunk reads, and who looks on.
pub struct Input<'a> {
    /// The embedding table, or the meta tokens.
    pub table: &'a Matrix,
    /// A row of the table for each token.
    pub rows: &'a [u32],
    /// Sees every layer.
    pub observe: Option<Observer<'a>>,
}

/// One chunk of tokens on its way through the model, after the text in `state`.
pub struct Chunk<'a> {
    /// Executes the operations.
    pub backend: &'a mut dyn Backend,
    /// The model's sizes.
    pub config: &'a Config,
    /// What the text so far has left behind.
    pub state: &'a mut State,
    /// The activations.
    pub scratch: &'a mut Scratch,
    /// Number of tokens.
    pub tokens: usize,
    /// What windowed layers see.
    pub phase: Phase,
}

impl Chunk<'_> {
    /// Runs the model over the chunk; the state then holds the chunk too. What is enqueued may not be executed yet.
    pub fn forward(&mut self, weights: &Weights, input: Input<'_>) -> Result<()> {
        self.rotate();
        let Input { table, rows, mut observe } = input;
        self.backend.run(Op::Gather { table, rows, out: self.scratch.x.all_mut(self.tokens) });
        self.check_finite(|| "the embedding".into())?;
        for (index, layer) in weights.layers.iter().enumerate() {
            self.layer(index, layer)?;
            if let Some(observe) = &mut observe {
                self.backend.finish()?;
                let s = &*self.scratch;
                let (hidden, attention, mamba) = (&s.x.buffer, &s.attention.buffer, &s.mamba.buffer);
                observe(LayerView { layer: index, hidden, attention, mamba })?;
            }
        }
        // Not before all layers are done: a ring's oldest rows make way for the newest, and the chunk's first tokens, in
        // consumers too, still see them.
        (0..weights.layers.len()).for_each(|layer| self.commit_kv(layer));
        self.state.position += self.tokens;
        Ok(())
    }

    /// Computes the logits of `tokens` of the chunk that went through [`Chunk::forward`], and waits for them.
    pub fn logits(&mut self, weights: &Weights, tokens: Range<usize>) -> Result<()> {
        let (c, s, n) = (self.config, &mut *self.scratch, tokens.len());
        let out = s.input.resized(n, c.hidden);
        self.backend.run(Op::RmsNorm { x: s.x.rows(tokens), gain: &weights.output_norm, eps: c.rms_eps, out });
        let (x, out) = (s.input.all(n), s.logits.all_mut(n));
        self.backend.run(Op::MatMul { w: weights.head(), x, out, accumulate: false });
        self.backend.finish()
    }

    /// Runs one layer as [`Chunk::forward`] does, over the residual stream in the scratch ([`Scratch::hidden_mut`]): for
    /// texts that pass through the model a layer at a time. The layer's conv and SSM state are carried on; its keys and
    /// values stay in the scratch ([`Scratch::kv_mut`]) until [`Chunk::commit_kv`], and the state's position stays.
    pub fn single_layer(&mut self, index: usize, layer: &Layer) -> Result<()> {
        self.rotate();
        self.layer(index, layer)?;
        self.backend.finish()
    }

    /// Moves the chunk's keys and values of one layer, if it is a producer, into the cache.
    pub fn commit_kv(&mut self, layer: usize) {
        let (k_width, v_width) = self.config.kv_widths();
        let (Some(cache), Some([k, v])) = (&mut self.state.layers[layer].kv, &self.scratch.kv[layer]) else { return };
        for (from, to, rows) in cache.layout.places(self.state.position, self.tokens) {
            self.backend.run(Op::CopyRows { from: (k, from), to: (&mut cache.k, to), rows, width: k_width });
            self.backend.run(Op::CopyRows { from: (v, from), to: (&mut cache.v, to), rows, width: v_width });
        }
    }

    fn layer(&mut self, index: usize, w: &Layer) -> Result<()> {
        self.in_proj(index, w); //          [q|k|v|u|gate] = in_proj(norm(x))
        self.attention_heads(index, w)?; // softmax(q·kᵀ)·v over meta tokens, window and chunk
        self.mamba_heads(index, w); //      conv → Δ, B, C → selective scan → gate
        self.fuse(w); //                    x += out_proj(½·(norm(attention) + norm(mamba)))
        self.feed_forward(w); //            x += down(act(norm(x)))
        self.check_finite(|| format!("layer {index}"))
    }

    /// [q|k|v|u|gate] = in_proj(norm(x)); a consumer's has neither k nor v.
    fn in_proj(&mut self, index: usize, w: &Layer) {
        let (b, c, s, t) = (&mut *self.backend, self.config, &mut *self.scratch, self.tokens);
        b.run(Op::RmsNorm { x: s.x.all(t), gain: &w.norm, eps: c.rms_eps, out: s.input.resized(t, c.hidden) });
        let out = s.mixed.resized(t, c.in_proj_rows(index));
        b.run(Op::MatMul { w: &w.in_proj, x: s.input.all(t), out, accumulate: false });
        if let Some(bias) = &w.in_proj_bias {
            b.run(Op::AddBias { x: s.mixed.all_mut(t), bias });
        }
    }

    /// Softmax attention over the cache and the chunk; a consumer reads the keys and values of its producer.
    fn attention_heads(&mut self, index: usize, w: &Layer) -> Result<()> {
        let (b, c, s, t) = (&mut *self.backend, self.config, &mut *self.scratch, self.tokens);
        let cols = InProjCols::new(c, index);
        let kv = cols.kv.as_ref();
        for (cols, gain) in [(Some(&cols.q), &w.q_norm), (kv.map(|(k, _)| k), &w.k_norm)] {
            let Some(cols) = cols else { continue };
            if let Some(gain) = gain {
                b.run(Op::HeadNorm { x: s.mixed.cols_mut(t, cols.clone()), gain, eps: HEAD_NORM_EPS });
            }
            if c.rope {
                b.run(Op::Rope { x: s.mixed.cols_mut(t, cols.clone()), dim: c.key_dim, angles: &s.angles });
            }
        }
        if let (Some([k, v]), Some((k_cols, v_cols))) = (&mut s.kv[index], kv) {
            let max = b.max_abs(s.mixed.cols(t, k_cols.start..v_cols.end));
            if max.is_some_and(|max| max.is_finite() && max > s.cache.limit()) {
                return Err(Error::CacheRange { layer: index, cache: s.cache.name() });
            }
            b.run(Op::StoreRows { x: s.mixed.cols(t, k_cols.clone()), out: k });
            b.run(Op::StoreRows { x: s.mixed.cols(t, v_cols.clone()), out: v });
        }
        let source = c.kv_source[index];
        let (Some(cache), Some([k, v])) = (&self.state.layers[source].kv, &s.kv[source]) else {
            unreachable!("the configuration was checked: a source is a producer");
        };
        let window = c.window.unwrap_or(0);
        let reach = if self.phase == Phase::Prefill { window } else { window.saturating_sub(1) };
        let position = self.state.position;
        let visible: Vec<[KvSpan; 4]> = (0..t).map(|token| cache.layout.visible(position, token, reach)).collect();
        b.run(Op::Attention(Attention {
            heads: Heads { query: c.heads, kv: c.kv_heads, key_dim: c.key_dim, value_dim: c.value_dim },
            q: s.mixed.cols(t, cols.q),
            cache: [&cache.k, &cache.v],
            chunk: [k, v],
            visible: &visible,
            position,
            out: s.attention.all_mut(t),
        }));
        Ok(())
    }

    /// Causal convolution, then the selective scan with Δ, B and C computed from its output.
    fn mamba_heads(&mut self, index: usize, w: &Layer) {
        let (b, c, s, t) = (&mut *self.backend, self.config, &mut *self.scratch, self.tokens);
        let state = &mut self.state.layers[index];
        let cols = InProjCols::new(c, index);
        let (u, out) = (s.mixed.cols(t, cols.u), s.input.resized(t, c.inner));
        b.run(Op::Conv { u, weight: &w.conv, bias: w.conv_bias.as_ref(), state: &mut state.conv, out });
        b.run(Op::MatMul { w: &w.x_proj, x: s.input.all(t), out: s.dt_b_c.all_mut(t), accumulate: false });
        let (dt, b_cols) = (0..c.dt_rank, c.dt_rank..c.dt_rank + c.state);
        let c_cols = b_cols.end..b_cols.end + c.state;
        if let Some(norm) = &w.dt_bc_norm {
            for (cols, gain) in [(&dt, &norm.dt), (&b_cols, &norm.b), (&c_cols, &norm.c)] {
                b.run(Op::HeadNorm { x: s.dt_b_c.cols_mut(t, cols.clone()), gain, eps: c.rms_eps });
            }
        }
        let (x, out) = (s.dt_b_c.cols(t, dt), s.up.resized(t, c.inner));
        b.run(Op::MatMul { w: &w.dt_proj, x, out, accumulate: false });
        let input = ScanInput {
            dt: s.up.all(t),
            u: s.input.all(t),
            gate: s.mixed.cols(t, cols.gate),
            b: s.dt_b_c.cols(t, b_cols),
            c: s.dt_b_c.cols(t, c_cols),
        };
        let weights = ScanWeights { dt_bias: &w.dt_bias, a: &w.a, d: &w.d };
        b.run(Op::Scan { input, weights, h: &mut state.ssm, out: s.mamba.all_mut(t) });
    }

    /// x += out_proj(½·(norm(attention heads) + norm(Mamba heads)))
    fn fuse(&mut self, w: &Layer) {
        let (b, c, s, t) = (&mut *self.backend, self.config, &mut *self.scratch, self.tokens);
        let (attention, mamba) = ((s.attention.all(t), &w.attn_out_norm), (s.mamba.all(t), &w.ssm_out_norm));
        b.run(Op::Fuse { a: attention, b: mamba, eps: c.rms_eps, out: s.input.resized(t, c.inner) });
        b.run(Op::MatMul { w: &w.out_proj, x: s.input.all(t), out: s.x.all_mut(t), accumulate: true });
        if let Some(bias) = &w.out_proj_bias {
            b.run(Op::AddBias { x: s.x.all_mut(t), bias });
        }
    }

    /// x += down(act(norm(x)))
    fn feed_forward(&mut self, w: &Layer) {
        let Some(f) = &w.feed_forward else { return };
        let (b, c, s, t) = (&mut *self.backend, self.config, &mut *self.scratch, self.tokens);
        b.run(Op::RmsNorm { x: s.x.all(t), gain: &f.norm, eps: c.rms_eps, out: s.input.resized(t, c.hidden) });
        let x = s.input.all(t);
        if let Some(gate) = &f.gate {
            let out = s.up.resized(t, c.ffn);
            b.run(Op::GatedMatMul { w: [gate, &f.up], x, gate: s.mixed.resized(t, c.ffn), out });
        } else {
            b.run(Op::MatMul { w: &f.up, x, out: s.up.resized(t, c.ffn), accumulate: false });
            b.run(Op::Relu2 { x: s.up.all_mut(t) });
        }
        b.run(Op::MatMul { w: &f.down, x: s.up.all(t), out: s.x.all_mut(t), accumulate: true });
    }

    /// Fails on NaN or infinity in the residual stream, which `what` produced. Once a layer suffices: kernels propagate
    /// values that are not finite.
    fn check_finite(&mut self, what: impl Fn() -> String) -> Result<()> {
        match self.backend.max_abs(self.scratch.x.all(self.tokens)) {
            Some(max) if !max.is_finite() => Err(Error::NotFinite(what())),
            _ => Ok(()),
        }
    }

    /// Computes the rotary angles: of position p and pair j, p · base^(−2j / key_dim).
    fn rotate(&mut self) {
        let (c, angles) = (self.config, &mut self.scratch.angles);
        angles.cos.clear();
        angles.sin.clear();
        if !c.rope {
            return;
        }
        let half = c.key_dim / 2;
        let rates: Vec<f64> = (0..half).map(|j| f64::from(c.rope_base).powf(-(j as f64) / half as f64)).collect();
        for position in self.state.position..self.state.position + self.tokens {
            for rate in &rates {
                let (sin, cos) = (position as f64 * rate).sin_cos();
                angles.cos.push(cos as f32);
                angles.sin.push(sin as f32);
            }
        }
    }
}

/// The columns of in_proj's output.
struct InProjCols {
    q: Range<usize>,
    kv: Option<(Range<usize>, Range<usize>)>,
    u: Range<usize>,
    gate: Range<usize>,
}

impl InProjCols {
    fn new(c: &Config, layer: usize) -> Self {
        let mut end = 0;
        let mut next = |width: usize| {
            end += width;
            end - width..end
        };
        let (k, v) = c.kv_widths();
        let q = next(c.hidden);
        let kv = c.is_producer(layer).then(|| (next(k), next(v)));
        Self { q, kv, u: next(c.inner), gate: next(c.inner) }
    }
}
