//! A pass: segments of several texts run through the model together.

use std::ops::Range;

use super::{Phase, Scratch, Segment, pending::MambaInputs, segment::unfailed};
use crate::{
    Error, Result,
    backend::{Attention, Backend, Buffer, Heads, KvSpan, Op, RowSpan, ScanInput, ScanWeights, StateUpdate},
    model::{Config, Weights, weights::Layer},
};

/// Prompt tokens per pass: whole tiles (of 5, 8 and 12 tokens) of every kernel.
pub const CHUNK: usize = 240;

/// The epsilon of the per-head norms, fixed in the official code.
const HEAD_NORM_EPS: f32 = 1e-6;

/// A layer's outputs for one pass, passed to an [`Observer`].
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

/// Receives every layer's outputs; its error ends the pass.
pub type Observer<'a> = &'a mut dyn FnMut(LayerView<'_>) -> Result<()>;

/// The input and the observer of a pass.
pub struct Input<'a> {
    /// An id for each token of each segment: meta tokens first, until a text has processed all of them.
    pub ids: &'a [u32],
    /// Receives every layer's outputs.
    pub observe: Option<Observer<'a>>,
}

/// A pass over segments of several texts. Products, norms and activations run over the concatenated rows of all
/// segments; operations that depend on the text so far run per segment on its own state.
///
/// The texts' states are unchanged until [`Chunk::commit`]. On the CPU, a row's bits do not depend on the other rows.
pub struct Chunk<'a, 's> {
    /// Executes the operations.
    pub backend: &'a mut dyn Backend,
    /// The model's sizes.
    pub config: &'a Config,
    /// The segments.
    pub segments: &'a mut [Segment<'s>],
    /// The activations, [prepared](Scratch::prepare) for these segments.
    pub scratch: &'a mut Scratch,
}

impl Chunk<'_, '_> {
    /// Runs the model over the segments. The failure of one segment is its [`Segment::failed`]; a returned error
    /// concerns all. On a GPU, enqueued work may still be running.
    pub fn forward(&mut self, weights: &Weights, input: Input<'_>) -> Result<()> {
        let Input { ids, mut observe } = input;
        self.rotate();
        self.embed(weights, ids);
        self.check_finite(|| "the embedding".into());
        for (index, layer) in weights.layers.iter().enumerate() {
            self.layer(index, layer);
            if self.all_failed() {
                break;
            }
            if let Some(observe) = &mut observe {
                self.backend.finish()?;
                let s = &*self.scratch;
                let (hidden, attention, mamba) = (&s.x.buffer, &s.attention.buffer, &s.mamba.buffer);
                observe(LayerView { layer: index, hidden, attention, mamba })?;
            }
        }
        Ok(())
    }

    /// Computes the requested logits after [`Chunk::forward`], and waits for completion. Those of failed segments are
    /// undefined.
    pub fn logits(&mut self, weights: &Weights) -> Result<()> {
        if self.all_failed() {
            return self.backend.finish();
        }
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let (mut spans, mut first) = (Vec::with_capacity(self.segments.len()), 0);
        s.input.set_width(c.hidden);
        for (segment, to) in self.segments.iter().zip(&s.logits_rows) {
            let from = first + segment.logits.start..first + segment.logits.end;
            first += segment.tokens;
            if !to.is_empty() {
                let out = s.input.rows_mut(to.clone());
                b.run(Op::RmsNorm { x: s.x.rows(from), gain: &weights.output_norm, eps: c.rms_eps, out });
                spans.push(RowSpan { rows: to.len(), decode: segment.phase == Phase::Decode });
            }
        }
        let n: usize = spans.iter().map(|span| span.rows).sum();
        if n > 0 {
            let (x, out) = (s.input.all(n), s.logits.all_mut(n));
            b.run(Op::MatMul { w: weights.head(), x, out, accumulate: false, spans: &spans });
        }
        b.finish()?;
        if let Buffer::Gpu(logits) = &s.logits.buffer {
            s.logits_read.clear();
            s.logits_read.extend_from_slice(&logits.f32()[..n * c.vocab]);
        }
        Ok(())
    }

    /// Runs one layer over the residual stream in the scratch ([`Scratch::hidden_mut`]), for layer-by-layer evaluation.
    /// See [`Chunk::commit_layer`].
    pub fn single_layer(&mut self, index: usize, layer: &Layer) -> Result<()> {
        self.rotate();
        self.layer(index, layer);
        self.backend.finish()?;
        self.segments.iter_mut().find_map(|segment| segment.failed.take()).map_or(Ok(()), Err)
    }

    /// Gathers the embedding of each id, or meta tokens.
    fn embed(&mut self, weights: &Weights, ids: &[u32]) {
        let mut first = 0;
        let in_meta = |segment: &Segment<'_>| segment.state.position < self.config.meta_tokens;
        for same in self.segments.chunk_by(|a, b| in_meta(a) == in_meta(b)) {
            let table = weights.meta_embd.as_ref().filter(|_| in_meta(&same[0])).unwrap_or(&weights.token_embd);
            let rows = first..first + same.iter().map(|segment| segment.tokens).sum::<usize>();
            first = rows.end;
            self.backend.run(Op::Gather { table, rows: &ids[rows.clone()], out: self.scratch.x.rows_mut(rows) });
        }
    }

    fn layer(&mut self, index: usize, w: &Layer) {
        let parts: [fn(&mut Self, usize, &Layer); 5] = [
            Self::in_proj,         // [q|k|v|u|gate] = in_proj(norm(x))
            Self::attention_heads, // softmax(q·kᵀ)·v over meta tokens, window and chunk
            Self::mamba_heads,     // conv → Δ, B, C → selective scan → gate
            Self::fuse,            // x += out_proj(½·(norm(attention) + norm(mamba)))
            Self::feed_forward,    // x += down(act(norm(x)))
        ];
        for part in parts {
            // A layer of a long prompt may take too long to check only between layers.
            self.segments.iter_mut().for_each(Segment::check_cancelled);
            if self.all_failed() {
                return;
            }
            part(self, index, w);
        }
        self.check_finite(|| format!("layer {index}"));
    }

    /// Whether all segments have failed or were cancelled.
    fn all_failed(&self) -> bool {
        self.segments.iter().all(|segment| segment.failed.is_some())
    }

    /// [q|k|v|u|gate] = in_proj(norm(x)); a consumer's has neither k nor v.
    fn in_proj(&mut self, index: usize, w: &Layer) {
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let t = s.rows;
        b.run(Op::RmsNorm { x: s.x.all(t), gain: &w.norm, eps: c.rms_eps, out: s.input.resized(t, c.hidden) });
        let out = s.mixed.resized(t, c.in_proj_rows(index));
        b.run(Op::MatMul { w: &w.in_proj, x: s.input.all(t), out, accumulate: false, spans: &s.spans });
        if let Some(bias) = &w.in_proj_bias {
            b.run(Op::AddBias { x: s.mixed.all_mut(t), bias });
        }
    }

    /// Softmax attention over the cache and the segment; a consumer reads the keys and values of its producer.
    fn attention_heads(&mut self, index: usize, w: &Layer) {
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let cols = InProjCols::new(c, index);
        let kv = cols.kv.as_ref();
        for (cols, gain) in [(Some(&cols.q), &w.q_norm), (kv.map(|(k, _)| k), &w.k_norm)] {
            let Some(cols) = cols else { continue };
            if let Some(gain) = gain {
                b.run(Op::HeadNorm { x: s.mixed.cols_mut(s.rows, cols.clone()), gain, eps: HEAD_NORM_EPS });
            }
            if c.rope {
                b.run(Op::Rope { x: s.mixed.cols_mut(s.rows, cols.clone()), dim: c.key_dim, angles: &s.angles });
            }
        }
        let source = c.kv_source[index];
        let window = c.window.unwrap_or(0);
        for (rows, segment, pending) in unfailed(self.segments, &mut s.pending) {
            if let (Some([k, v]), Some((k_cols, v_cols))) = (&mut pending.layers[index].kv, kv) {
                let max = b.max_abs(s.mixed.part(rows.clone(), k_cols.start..v_cols.end));
                if max.is_some_and(|max| max.is_finite() && max > pending.cache.limit()) {
                    segment.failed = Some(Error::CacheRange { layer: index, cache: pending.cache.name() });
                    continue;
                }
                b.run(Op::StoreRows { x: s.mixed.part(rows.clone(), k_cols.clone()), out: k });
                b.run(Op::StoreRows { x: s.mixed.part(rows.clone(), v_cols.clone()), out: v });
            }
            let (Some(cache), Some([k, v])) = (&segment.state.layers[source].kv, &pending.layers[source].kv) else {
                unreachable!("the configuration was validated: a KV source is a producer");
            };
            let decode = segment.phase == Phase::Decode;
            let reach = if decode { window.saturating_sub(1) } else { window };
            let (position, tokens) = (segment.state.position, 0..segment.tokens);
            let visible: Vec<[KvSpan; 4]> = tokens.map(|token| cache.layout.visible(position, token, reach)).collect();
            b.run(Op::Attention(Attention {
                heads: Heads { query: c.heads, kv: c.kv_heads, key_dim: c.key_dim, value_dim: c.value_dim },
                q: s.mixed.part(rows.clone(), cols.q.clone()),
                cache: [&cache.k, &cache.v],
                chunk: [k, v],
                visible: &visible,
                position,
                decode,
                out: s.attention.rows_mut(rows),
            }));
        }
    }

    /// Causal convolution, then the selective scan with Δ, B and C computed from its output.
    fn mamba_heads(&mut self, index: usize, w: &Layer) {
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let t = s.rows;
        let cols = InProjCols::new(c, index);
        s.input.set_width(c.inner);
        for (rows, segment, pending) in unfailed(self.segments, &mut s.pending) {
            let (from, pending) = (&segment.state.layers[index].conv, &mut pending.layers[index]);
            let (u, out) = (s.mixed.part(rows.clone(), cols.u.clone()), s.input.rows_mut(rows));
            if let Some(MambaInputs { conv, .. }) = pending.inputs.as_mut().filter(|_| segment.is_divisible()) {
                b.run(Op::StoreRows { x: u, out: conv });
            }
            let state = StateUpdate { from, to: &mut pending.conv };
            b.run(Op::Conv { u, weight: &w.conv, bias: w.conv_bias.as_ref(), state, out });
        }
        let (x, out) = (s.input.all(t), s.dt_b_c.cols_mut(t, 0..w.x_proj.rows));
        b.run(Op::MatMul { w: &w.x_proj, x, out, accumulate: false, spans: &s.spans });
        let (dt, b_cols) = (0..c.dt_rank, c.dt_rank..c.dt_rank + c.state);
        let c_cols = b_cols.end..b_cols.end + c.state;
        if let Some(norm) = &w.dt_bc_norm {
            for (cols, gain) in [(&dt, &norm.dt), (&b_cols, &norm.b), (&c_cols, &norm.c)] {
                b.run(Op::HeadNorm { x: s.dt_b_c.cols_mut(t, cols.clone()), gain, eps: c.rms_eps });
            }
        }
        let (x, out) = (s.dt_b_c.cols(t, dt), s.up.resized(t, c.inner));
        b.run(Op::MatMul { w: &w.dt_proj, x, out, accumulate: false, spans: &s.spans });
        let weights = || ScanWeights { dt_bias: &w.dt_bias, a: &w.a, d: &w.d };
        for (rows, segment, pending) in unfailed(self.segments, &mut s.pending) {
            let (from, pending) = (&segment.state.layers[index].ssm, &mut pending.layers[index]);
            let input = ScanInput {
                dt: s.up.rows(rows.clone()),
                u: s.input.rows(rows.clone()),
                gate: s.mixed.part(rows.clone(), cols.gate.clone()),
                b: s.dt_b_c.part(rows.clone(), b_cols.clone()),
                c: s.dt_b_c.part(rows.clone(), c_cols.clone()),
            };
            if let Some(kept) = pending.inputs.as_mut().filter(|_| segment.is_divisible()) {
                b.run(Op::StoreRows { x: input.dt, out: &mut kept.dt });
                b.run(Op::StoreRows { x: input.u, out: &mut kept.u });
                b.run(Op::StoreRows { x: input.b, out: &mut kept.b });
            }
            let state = StateUpdate { from, to: &mut pending.ssm };
            b.run(Op::Scan { input, weights: weights(), state, out: s.mamba.rows_mut(rows) });
        }
    }

    /// x += out_proj(½·(norm(attention heads) + norm(Mamba heads)))
    fn fuse(&mut self, _: usize, w: &Layer) {
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let t = s.rows;
        let (attention, mamba) = ((s.attention.all(t), &w.attn_out_norm), (s.mamba.all(t), &w.ssm_out_norm));
        b.run(Op::Fuse { a: attention, b: mamba, eps: c.rms_eps, out: s.input.resized(t, c.inner) });
        b.run(Op::MatMul { w: &w.out_proj, x: s.input.all(t), out: s.x.all_mut(t), accumulate: true, spans: &s.spans });
        if let Some(bias) = &w.out_proj_bias {
            b.run(Op::AddBias { x: s.x.all_mut(t), bias });
        }
    }

    /// x += down(act(norm(x)))
    fn feed_forward(&mut self, _: usize, w: &Layer) {
        let Some(f) = &w.feed_forward else { return };
        let (b, c, s) = (&mut *self.backend, self.config, &mut *self.scratch);
        let t = s.rows;
        b.run(Op::RmsNorm { x: s.x.all(t), gain: &f.norm, eps: c.rms_eps, out: s.input.resized(t, c.hidden) });
        let x = s.input.all(t);
        if let Some(gate) = &f.gate {
            let out = s.up.resized(t, c.ffn);
            b.run(Op::GatedMatMul { w: [gate, &f.up], x, gate: s.mixed.resized(t, c.ffn), out, spans: &s.spans });
        } else {
            b.run(Op::MatMul { w: &f.up, x, out: s.up.resized(t, c.ffn), accumulate: false, spans: &s.spans });
            b.run(Op::Relu2 { x: s.up.all_mut(t) });
        }
        b.run(Op::MatMul { w: &f.down, x: s.up.all(t), out: s.x.all_mut(t), accumulate: true, spans: &s.spans });
    }

    /// Fails segments with NaN or infinity in the residual stream, which `location` produced. Once per layer suffices:
    /// kernels propagate non-finite values.
    fn check_finite(&mut self, location: impl Fn() -> String) {
        let Scratch { x, pending, .. } = &mut *self.scratch;
        for (rows, segment, _) in unfailed(self.segments, pending) {
            if self.backend.max_abs(x.rows(rows)).is_some_and(|max| !max.is_finite()) {
                segment.failed = Some(Error::NotFinite(location()));
            }
        }
    }

    /// Computes the rotary angles of every row: of position p and pair j, p · base^(−2j / key_dim).
    fn rotate(&mut self) {
        let (c, angles) = (self.config, &mut self.scratch.angles);
        angles.cos.clear();
        angles.sin.clear();
        if !c.rope {
            return;
        }
        let halve = c.key_dim / 2;
        let rates: Vec<f64> = (0..halve).map(|j| f64::from(c.rope_base).powf(-(j as f64) / halve as f64)).collect();
        for segment in &*self.segments {
            for position in segment.state.position..segment.state.position + segment.tokens {
                for rate in &rates {
                    let (sin, cos) = (position as f64 * rate).sin_cos();
                    angles.cos.push(cos as f32);
                    angles.sin.push(sin as f32);
                }
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
