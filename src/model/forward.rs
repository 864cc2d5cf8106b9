//! One forward pass, for every backend: it reads like the figure of the paper. In each layer the attention heads and
//! the Mamba heads read the same input side by side; their outputs are normed, averaged and projected together.

use std::ops::Range;

use super::{Config, Weights, weights::Layer};
use crate::{
    Error, Result,
    backend::{Angles, Backend, Heads, KvSpan, Part, PartMut, ScanInput, Visible},
    format::{CacheType, Matrix},
    state::State,
};

/// The epsilon of the per-head norms, fixed in the official code.
const HEAD_NORM_EPS: f32 = 1e-6;

/// Which positions a windowed layer sees; the official code has a rule for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Reading a prompt: W positions back, W + 1 with oneself.
    Prefill,
    /// Generating: W − 1 positions back, W with oneself.
    Decode,
}

/// What a layer made of a chunk, for who wants to look: tests, calibration.
pub struct LayerView<'a, M> {
    /// Which layer.
    pub layer: usize,
    /// After both residual additions `[tokens, hidden]`.
    pub hidden: &'a M,
    /// The attention heads' output before its norm `[tokens, inner]`.
    pub attention: &'a M,
    /// The Mamba heads' output before its norm `[tokens, inner]`.
    pub mamba: &'a M,
}

/// Sees every layer's output; an error ends the pass, after which the state is of no use.
pub type Observer<'a, M> = &'a mut dyn FnMut(LayerView<'_, M>) -> Result<()>;

/// A matrix of activations `[tokens, width]`.
struct Acts<M> {
    memory: M,
    width: usize,
}

impl<M> Acts<M> {
    fn cols(&self, tokens: usize, cols: Range<usize>) -> Part<'_, M> {
        Part { memory: &self.memory, rows: tokens, start: cols.start, cols: cols.len(), stride: self.width }
    }

    fn cols_mut(&mut self, tokens: usize, cols: Range<usize>) -> PartMut<'_, M> {
        PartMut { memory: &mut self.memory, rows: tokens, start: cols.start, cols: cols.len(), stride: self.width }
    }

    fn rows(&self, rows: Range<usize>) -> Part<'_, M> {
        Part { start: rows.start * self.width, ..self.all(rows.len()) }
    }

    fn all(&self, tokens: usize) -> Part<'_, M> {
        self.cols(tokens, 0..self.width)
    }

    fn all_mut(&mut self, tokens: usize) -> PartMut<'_, M> {
        self.cols_mut(tokens, 0..self.width)
    }

    /// Room for a matrix of `width`, in place of what was there.
    fn room(&mut self, tokens: usize, width: usize) -> PartMut<'_, M> {
        self.width = width;
        self.all_mut(tokens)
    }
}

/// Room for the activations of a chunk, used again by every layer.
pub struct Scratch<M> {
    chunk: usize,
    x: Acts<M>,
    /// What the next product reads: x normed, the convolution's output, the average of the heads.
    input: Acts<M>,
    /// What in_proj makes: `[q|k|v|u|gate]` or `[q|u|gate]`; then the feed-forward's gate.
    mixed: Acts<M>,
    attention: Acts<M>,
    /// What x_proj makes: `[dt|B|C]`.
    dt_b_c: Acts<M>,
    mamba: Acts<M>,
    /// Δ of the Mamba heads; then what the feed-forward makes.
    up: Acts<M>,
    logits: Acts<M>,
    logits_rows: usize,
    /// Per layer that makes them: keys and values of the chunk, which enter the cache when the pass is over.
    kv: Vec<Option<[M; 2]>>,
    kind: CacheType,
    angles: Angles,
}

impl<M> Scratch<M> {
    /// Room for chunks of up to `chunk` tokens; none for logits yet.
    pub fn new<B: Backend<Memory = M>>(b: &B, c: &Config, chunk: usize, kind: CacheType) -> Result<Self> {
        let acts = |width: usize| Ok(Acts { memory: b.zeros(chunk * width)?, width });
        let (k, v) = c.kv_widths();
        let rows = |dim| b.kv_rows(kind, chunk, c.kv_heads, dim);
        let kv = |layer| c.is_producer(layer).then(|| Ok([rows(c.key_dim)?, rows(c.value_dim)?])).transpose();
        Ok(Self {
            chunk,
            x: acts(c.hidden)?,
            input: acts(c.hidden.max(c.inner))?,
            mixed: acts((c.hidden + k + v + 2 * c.inner).max(c.ffn))?,
            attention: acts(c.inner)?,
            dt_b_c: acts(c.dt_rank + 2 * c.state)?,
            mamba: acts(c.inner)?,
            up: acts(c.inner.max(c.ffn))?,
            logits: Acts { memory: b.zeros(0)?, width: c.vocab },
            logits_rows: 0,
            kv: (0..c.layers).map(kv).collect::<Result<_>>()?,
            kind,
            angles: Angles::default(),
        })
    }

    /// Makes room for the logits of `rows` tokens of a pass, if there is not: a row is as wide as the vocabulary.
    pub fn hold_logits<B: Backend<Memory = M>>(&mut self, b: &B, rows: usize) -> Result<()> {
        if self.logits_rows < rows {
            self.logits.memory = b.zeros(rows * self.logits.width)?;
            self.logits_rows = rows;
        }
        Ok(())
    }

    /// The longest chunk there is room for.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// The logits of the last pass `[rows, vocab]`.
    pub fn logits(&self) -> &M {
        &self.logits.memory
    }

    /// The residual stream of the chunk `[tokens, hidden]`, for who runs the layers one by one.
    pub fn hidden_mut(&mut self) -> &mut M {
        &mut self.x.memory
    }

    /// The chunk's keys and values, in a layer that makes them.
    pub fn kv_mut(&mut self, layer: usize) -> Option<&mut [M; 2]> {
        self.kv[layer].as_mut()
    }
}

/// One pass over a chunk.
pub struct Pass<'a> {
    /// The embedding table, or the meta tokens.
    pub table: &'a Matrix,
    /// The chunk: rows of the table.
    pub rows: &'a [u32],
    /// What windowed layers see.
    pub rule: Rule,
    /// The tokens of the chunk whose logits are wanted.
    pub logits: Range<usize>,
}

/// Runs the model over a chunk; `state` then holds the chunk too.
pub fn forward<B: Backend>(
    b: &mut B,
    c: &Config,
    w: &Weights,
    state: &mut State<B::Memory>,
    s: &mut Scratch<B::Memory>,
    pass: &Pass<'_>,
    mut observe: Option<Observer<'_, B::Memory>>,
) -> Result<()> {
    let t = pass.rows.len();
    rotary_angles(c, state.position, t, &mut s.angles);
    b.gather(pass.table, pass.rows, s.x.all_mut(t));
    check(b, s, t, || "the embedding".into())?;
    for (layer, l) in w.layers.iter().enumerate() {
        mixer(b, c, layer, l, state, s, t, pass.rule)?;
        feed_forward(b, c, l, s, t);
        check(b, s, t, || format!("layer {layer}"))?;
        if let Some(observe) = &mut observe {
            b.finish()?;
            observe(LayerView { layer, hidden: &s.x.memory, attention: &s.attention.memory, mamba: &s.mamba.memory })?;
        }
    }
    commit_kv(b, c, state, s, t);
    let n = pass.logits.len();
    if n > 0 {
        b.rms_norm(s.x.rows(pass.logits.clone()), &w.output_norm, c.rms_eps, s.input.room(n, c.hidden));
        b.matmul(w.head(), s.input.all(n), s.logits.all_mut(n), false);
    }
    b.finish()
}

/// Runs one layer as [`forward`] does, over a chunk of `t` tokens that is in the scratch ([`Scratch::hidden_mut`]): for
/// texts that pass through the model a layer at a time. The layer's conv and SSM state go on; its keys and values stay
/// in the scratch ([`Scratch::kv_mut`]) until [`commit_layer`], and the state's position stays.
pub fn forward_layer<B: Backend>(
    b: &mut B,
    c: &Config,
    layer: usize,
    l: &Layer,
    state: &mut State<B::Memory>,
    s: &mut Scratch<B::Memory>,
    t: usize,
) -> Result<()> {
    rotary_angles(c, state.position, t, &mut s.angles);
    mixer(b, c, layer, l, state, s, t, Rule::Prefill)?;
    feed_forward(b, c, l, s, t);
    b.finish()?;
    check(b, s, t, || format!("layer {layer}"))
}

/// The residual stream is finite, or `what` made something else of it. What is not finite within a layer comes here: no
/// kernel makes a number of it.
fn check<B: Backend>(b: &mut B, s: &Scratch<B::Memory>, t: usize, what: impl Fn() -> String) -> Result<()> {
    if b.largest(s.x.all(t)).is_finite() { Ok(()) } else { Err(Error::NotFinite(what())) }
}

/// x += out_proj(½·(norm(attention heads) + norm(Mamba heads))), both reading in_proj(norm(x)).
#[allow(clippy::too_many_arguments)]
fn mixer<B: Backend>(
    b: &mut B,
    c: &Config,
    layer: usize,
    l: &Layer,
    state: &mut State<B::Memory>,
    s: &mut Scratch<B::Memory>,
    t: usize,
    rule: Rule,
) -> Result<()> {
    b.rms_norm(s.x.all(t), &l.norm, c.rms_eps, s.input.room(t, c.hidden));
    let parts = Parts::new(c, layer);
    b.matmul(&l.in_proj, s.input.all(t), s.mixed.room(t, parts.gate.end), false);
    if let Some(bias) = &l.in_proj_bias {
        b.add_bias(s.mixed.all_mut(t), bias);
    }
    attention_heads(b, c, layer, l, &parts, state, s, t, rule)?;
    mamba_heads(b, c, layer, l, &parts, state, s, t);
    let (attention, mamba) = ((s.attention.all(t), &l.attn_out_norm), (s.mamba.all(t), &l.ssm_out_norm));
    b.fuse(attention, mamba, c.rms_eps, s.input.room(t, c.inner));
    b.matmul(&l.out_proj, s.input.all(t), s.x.all_mut(t), true);
    if let Some(bias) = &l.out_proj_bias {
        b.add_bias(s.x.all_mut(t), bias);
    }
    Ok(())
}

/// Softmax attention over the cache and the chunk; a consumer reads the keys and values of its producer.
#[allow(clippy::too_many_arguments)]
fn attention_heads<B: Backend>(
    b: &mut B,
    c: &Config,
    layer: usize,
    l: &Layer,
    parts: &Parts,
    state: &State<B::Memory>,
    s: &mut Scratch<B::Memory>,
    t: usize,
    rule: Rule,
) -> Result<()> {
    if let Some(gain) = &l.q_norm {
        b.head_norm(s.mixed.cols_mut(t, parts.q.clone()), gain, HEAD_NORM_EPS);
    }
    if c.rope {
        b.rope(s.mixed.cols_mut(t, parts.q.clone()), c.key_dim, &s.angles);
    }
    if let (Some([k, v]), Some((k_cols, v_cols))) = (&mut s.kv[layer], &parts.kv) {
        if let Some(gain) = &l.k_norm {
            b.head_norm(s.mixed.cols_mut(t, k_cols.clone()), gain, HEAD_NORM_EPS);
        }
        if c.rope {
            b.rope(s.mixed.cols_mut(t, k_cols.clone()), c.key_dim, &s.angles);
        }
        let largest = b.largest(s.mixed.cols(t, k_cols.start..v_cols.end));
        if largest.is_finite() && largest > s.kind.limit() {
            return Err(Error::CacheRange { layer, cache: s.kind.name() });
        }
        b.store_rows(s.mixed.cols(t, k_cols.clone()), k);
        b.store_rows(s.mixed.cols(t, v_cols.clone()), v);
    }
    let source = c.kv_source[layer];
    let (Some(cache), Some([k, v])) = (&state.layers[source].kv, &s.kv[source]) else {
        unreachable!("the configuration was checked: a source makes keys and values");
    };
    let window = c.window.unwrap_or(0);
    let reach = if rule == Rule::Prefill { window } else { window.saturating_sub(1) };
    let spans: Vec<[KvSpan; 4]> = (0..t).map(|token| cache.layout.visible(state.position, token, reach)).collect();
    let heads = Heads { query: c.heads, kv: c.kv_heads, key_dim: c.key_dim, value_dim: c.value_dim };
    let q = s.mixed.cols(t, parts.q.clone());
    b.attention(
        heads,
        q,
        [&cache.k, &cache.v],
        [k, v],
        Visible { spans: &spans, position: state.position },
        s.attention.all_mut(t),
    );
    Ok(())
}

/// Causal convolution, then the selective scan with Δ, B and C made from its output.
#[allow(clippy::too_many_arguments)]
fn mamba_heads<B: Backend>(
    b: &mut B,
    c: &Config,
    layer: usize,
    l: &Layer,
    parts: &Parts,
    state: &mut State<B::Memory>,
    s: &mut Scratch<B::Memory>,
    t: usize,
) {
    let memory = &mut state.layers[layer];
    let u = s.mixed.cols(t, parts.u.clone());
    b.conv_silu(u, &l.conv, l.conv_bias.as_ref(), &mut memory.conv, s.input.room(t, c.inner));
    b.matmul(&l.x_proj, s.input.all(t), s.dt_b_c.all_mut(t), false);
    let (dt, b_cols) = (0..c.dt_rank, c.dt_rank..c.dt_rank + c.state);
    let c_cols = b_cols.end..b_cols.end + c.state;
    if let Some(norm) = &l.dt_bc_norm {
        for (cols, gain) in [(&dt, &norm.dt), (&b_cols, &norm.b), (&c_cols, &norm.c)] {
            b.head_norm(s.dt_b_c.cols_mut(t, cols.clone()), gain, c.rms_eps);
        }
    }
    b.matmul(&l.dt_proj, s.dt_b_c.cols(t, dt), s.up.room(t, c.inner), false);
    let input = ScanInput {
        dt: s.up.all(t),
        u: s.input.all(t),
        gate: s.mixed.cols(t, parts.gate.clone()),
        b: s.dt_b_c.cols(t, b_cols),
        c: s.dt_b_c.cols(t, c_cols),
    };
    b.scan(input, l, &mut memory.ssm, s.mamba.all_mut(t));
}

/// x += down(act(norm(x)))
fn feed_forward<B: Backend>(b: &mut B, c: &Config, l: &Layer, s: &mut Scratch<B::Memory>, t: usize) {
    let Some(f) = &l.feed_forward else { return };
    b.rms_norm(s.x.all(t), &f.norm, c.rms_eps, s.input.room(t, c.hidden));
    if let Some(gate) = &f.gate {
        b.gated_matmul([gate, &f.up], s.input.all(t), s.mixed.room(t, c.ffn), s.up.room(t, c.ffn));
    } else {
        b.matmul(&f.up, s.input.all(t), s.up.room(t, c.ffn), false);
        b.relu2(s.up.all_mut(t));
    }
    b.matmul(&f.down, s.up.all(t), s.x.all_mut(t), true);
}

/// The chunk's keys and values enter the cache. Not before all layers are done: a ring's oldest rows make way for the
/// newest, and the chunk's first tokens, in consumers too, still see them.
fn commit_kv<B: Backend>(b: &mut B, c: &Config, state: &mut State<B::Memory>, s: &Scratch<B::Memory>, t: usize) {
    for layer in 0..state.layers.len() {
        commit_layer(b, c, layer, state, s, t);
    }
    state.position += t;
}

/// The chunk's keys and values of one layer, if it makes them, enter the cache.
pub fn commit_layer<B: Backend>(
    b: &mut B,
    c: &Config,
    layer: usize,
    state: &mut State<B::Memory>,
    s: &Scratch<B::Memory>,
    t: usize,
) {
    let (k_width, v_width) = c.kv_widths();
    let (Some(cache), Some([k, v])) = (&mut state.layers[layer].kv, &s.kv[layer]) else { return };
    for (from, to, rows) in cache.layout.places(state.position, t) {
        b.copy_rows((k, from), (&mut cache.k, to), rows, k_width);
        b.copy_rows((v, from), (&mut cache.v, to), rows, v_width);
    }
}

/// Where in_proj's columns go.
struct Parts {
    q: Range<usize>,
    kv: Option<(Range<usize>, Range<usize>)>,
    u: Range<usize>,
    gate: Range<usize>,
}

impl Parts {
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

/// Angle of position p and pair j: p · base^(−2j / key_dim).
fn rotary_angles(c: &Config, start: usize, tokens: usize, angles: &mut Angles) {
    angles.cos.clear();
    angles.sin.clear();
    if !c.rope {
        return;
    }
    let half = c.key_dim / 2;
    let rates: Vec<f64> = (0..half).map(|j| f64::from(c.rope_base).powf(-(j as f64) / half as f64)).collect();
    for position in start..start + tokens {
        for rate in &rates {
            let (sin, cos) = (position as f64 * rate).sin_cos();
            angles.cos.push(cos as f32);
            angles.sin.push(sin as f32);
        }
    }
}
