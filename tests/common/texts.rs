//! Small random models, and passes over several texts.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use hymba::{
    Result,
    backend::{Backend, Buffer, Cpu, MatMut, MatRef, Op},
    engine::Model,
    format::{CacheType, DType, gguf::Metadata},
    forward::{Chunk, DECODE_TOKENS, Input, MetaPass, Phase, Scratch, ScratchSize, Segment},
    model::{Activation, Config},
    quant::random_weights,
    state::{Checkpoint, MetaState, State},
    text::Tokenizer,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub static NO_CANCEL: AtomicBool = AtomicBool::new(false);
/// Context size in tokens.
pub const CONTEXT: usize = 200;

pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub fn one_of<T: Copy>(rng: &mut ChaCha8Rng, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}

/// Returns a random config of a small model with every kind of layer: global and windowed, KV producers and consumers.
pub fn small_config(rng: &mut ChaCha8Rng) -> Config {
    let (kv_heads, group, key_dim) = (rng.random_range(1..3), rng.random_range(1..4), one_of(rng, &[32, 32, 64]));
    let heads = kv_heads * group;
    let layers = 5;
    Config {
        vocab: 64,
        context_length: 256,
        hidden: heads * key_dim,
        layers,
        ffn: one_of(rng, &[0, 32, 96, 160]),
        activation: one_of(rng, &[Activation::Silu, Activation::Relu2]),
        heads,
        kv_heads,
        key_dim,
        value_dim: 2 * key_dim,
        rms_eps: 1e-6,
        window: Some(one_of(rng, &[1, 2, 3, 5, 9])),
        windowed: vec![false, true, true, true, false],
        kv_source: one_of(rng, &[[0, 1, 1, 1, 4], [0, 1, 1, 3, 4], [0, 1, 2, 2, 0]]).to_vec(),
        qk_norm: rng.random_bool(0.3),
        meta_tokens: one_of(rng, &[0, 1, 5, 8]),
        rope: rng.random_bool(0.8),
        rope_base: 10_000.0,
        conv_kernel: rng.random_range(1..6),
        inner: 2 * heads * key_dim,
        state: one_of(rng, &[3, 8, 16, 17]),
        dt_rank: one_of(rng, &[3, 8, 32]),
        dt_b_c_norm: rng.random_bool(0.7),
    }
}

/// Number of tokens of [`tokenizer`].
pub const VOCAB: usize = 267;

/// A tokenizer of all bytes and some words.
pub fn tokenizer() -> Tokenizer {
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.huggingface.json", include_str!("../../src/text/small-tokenizer.json"));
    for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
        metadata.set(format!("tokenizer.ggml.{key}_token_id"), id);
    }
    Tokenizer::from_metadata(&metadata, "test").unwrap()
}

/// Returns a model with random weights, whose file is in `folder`.
pub fn model(config: &Config, dtype: DType, folder: &Path) -> Model {
    assert_eq!(config.inconsistency(), None);
    let file = folder.join("random.gguf");
    random_weights(config, "random", dtype, &file, &NO_CANCEL).unwrap();
    Model::open(&file).unwrap()
}

/// Input of a text in a pass, and how many of its tokens are committed.
#[derive(Clone, Debug)]
pub struct Part {
    pub ids: Vec<u32>,
    pub phase: Phase,
    pub accepted: usize,
}

impl Part {
    pub fn prefill(rng: &mut ChaCha8Rng, vocab: usize, tokens: usize) -> Self {
        Self { phase: Phase::Prefill, ..Self::decode(rng, vocab, tokens, tokens) }
    }

    pub fn decode(rng: &mut ChaCha8Rng, vocab: usize, tokens: usize, accepted: usize) -> Self {
        let ids = (0..tokens).map(|_| rng.random_range(0..vocab as u32)).collect();
        Self { ids, phase: Phase::Decode, accepted }
    }

    pub fn random(rng: &mut ChaCha8Rng, vocab: usize) -> Self {
        let tokens = rng.random_range(1..=DECODE_TOKENS);
        if rng.random_bool(0.5) {
            let accepted = rng.random_range(0..=tokens);
            return Self::decode(rng, vocab, tokens, accepted);
        }
        let tokens = rng.random_range(1..30);
        Self::prefill(rng, vocab, tokens)
    }
}

/// Result of a part: the bits of the logits after every token, or the error.
pub type Outcome = std::result::Result<Vec<u32>, String>;

/// A fault in some rows of a pass while a layer is computed.
#[derive(Clone, Debug)]
pub struct Fault {
    pub layer: usize,
    pub rows: Range<usize>,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// in_proj produces NaN.
    Nan,
    /// in_proj produces values beyond F16.
    Large,
    /// The first text is cancelled.
    Cancel,
}

/// A backend that injects a fault.
struct Injecting<'a> {
    inner: &'a mut Cpu,
    model: &'a Model,
    fault: &'a Fault,
    cancel: &'a AtomicBool,
}

impl Backend for Injecting<'_> {
    fn run(&mut self, op: Op<'_>) {
        let Fault { layer, rows, kind } = self.fault;
        match op {
            Op::MatMul { w, x, out, accumulate, spans } if w.id == self.model.weights().layers[*layer].in_proj.id => {
                let MatMut { buffer, rows: tokens, start, cols, stride } = out;
                let out = MatMut { buffer: &mut *buffer, rows: tokens, start, cols, stride };
                self.inner.run(Op::MatMul { w, x, out, accumulate, spans });
                let Buffer::F32(values) = buffer else { panic!("activations are f32") };
                match kind {
                    FaultKind::Cancel => self.cancel.store(true, Ordering::Relaxed),
                    FaultKind::Nan | FaultKind::Large => rows.clone().for_each(|t| {
                        values[start + t * stride..][..cols].fill(if *kind == FaultKind::Nan { f32::NAN } else { 1e6 });
                    }),
                }
            }
            op => self.inner.run(op),
        }
    }

    fn max_abs(&mut self, x: MatRef<'_>) -> Option<f32> {
        self.inner.max_abs(x)
    }

    fn finish(&mut self) -> Result<()> {
        self.inner.finish()
    }
}

/// A model on a CPU, with the buffers for passes.
pub struct Machine<'m> {
    model: &'m Model,
    cpu: Cpu,
    scratch: Scratch,
    meta: Option<MetaState>,
}

impl<'m> Machine<'m> {
    pub fn new(model: &'m Model, cpu: Cpu) -> Self {
        let size = ScratchSize { config: model.config(), rows: 1, cache: CacheType::F16 };
        let (scratch, mut cpu) = (Scratch::new(&cpu, size).unwrap(), cpu);
        let (config, weights) = (model.config(), model.weights());
        let meta = MetaPass { backend: &mut cpu, config, weights, cancel: None };
        let meta = (config.meta_tokens > 0).then(|| meta.run(None).unwrap());
        Self { model, cpu, scratch, meta }
    }

    /// Replaces the CPU: other kernels, or another number of threads.
    pub fn set_cpu(&mut self, cpu: Cpu) {
        self.cpu = cpu;
    }

    pub fn kernels(&self) -> &'static str {
        self.cpu.kernels()
    }

    /// Returns a zeroed state, without the meta tokens.
    pub fn zeroed(&self, cache: CacheType) -> State {
        State::new(&self.cpu, self.model.config(), CONTEXT, cache).unwrap()
    }

    /// Returns the state of an empty text, after the meta tokens.
    pub fn empty(&mut self, cache: CacheType) -> State {
        let mut state = self.zeroed(cache);
        self.clear(&mut state);
        state
    }

    pub fn clear(&mut self, state: &mut State) {
        state.clear(&mut self.cpu);
        let meta = self.meta.as_ref();
        meta.into_iter().for_each(|meta| meta.put(&mut self.cpu, self.model.config(), state).unwrap());
    }

    /// Returns a checkpoint of the whole state.
    pub fn checkpoint(&mut self, state: &State) -> Checkpoint {
        state.checkpoint(&mut self.cpu, self.model.config(), state.cache, true).unwrap()
    }

    pub fn restore(&mut self, state: &mut State, checkpoint: &Checkpoint) {
        state.restore(&mut self.cpu, self.model.config(), checkpoint);
    }

    /// Returns the bytes of a state.
    pub fn image(&mut self, state: &State) -> Vec<u8> {
        let mut image = Vec::new();
        state.write_image(&mut self.cpu, self.model.config(), state.cache, true, &mut image);
        image.extend(state.position.to_le_bytes());
        image
    }

    /// Runs a pass over some texts, with a fault if there is one, and commits those that did not fail.
    pub fn pass(&mut self, texts: &mut [(&mut State, &Part)], fault: Option<&Fault>) -> Vec<Outcome> {
        let Self { model, cpu, scratch, .. } = self;
        let (config, weights, cancel) = (model.config(), model.weights(), AtomicBool::new(false));
        let ids: Vec<u32> = texts.iter().flat_map(|(_, part)| part.ids.clone()).collect();
        let accepted: Vec<usize> = texts.iter().map(|(_, part)| part.accepted).collect();
        let mut segments: Vec<Segment<'_>> = texts
            .iter_mut()
            .enumerate()
            .map(|(i, (state, part))| {
                let tokens = part.ids.len();
                let cancel = (i == 0).then_some(&cancel);
                Segment { state, tokens, phase: part.phase, logits: 0..tokens, cancel, failed: None }
            })
            .collect();
        scratch.prepare(cpu, config, &segments).unwrap();
        let input = Input { ids: &ids, observe: None };
        let mut injecting;
        let backend: &mut dyn Backend = match fault {
            Some(fault) => {
                injecting = Injecting { inner: cpu, model, fault, cancel: &cancel };
                &mut injecting
            }
            None => cpu,
        };
        let mut chunk = Chunk { backend, config, segments: &mut segments, scratch };
        chunk.forward(weights, input).unwrap();
        chunk.logits(weights).unwrap();
        let outcome = |(i, segment): (usize, &Segment<'_>)| match &segment.failed {
            Some(error) => Err(error.to_string()),
            None => Ok(chunk.scratch.logits(i).iter().map(|v| v.to_bits()).collect()),
        };
        let outcomes: Vec<Outcome> = chunk.segments.iter().enumerate().map(outcome).collect();
        for i in (0..outcomes.len()).rev() {
            if outcomes[i].is_ok() {
                chunk.commit(weights, i, accepted[i]);
            }
        }
        outcomes
    }

    /// Runs a pass over one text.
    pub fn run(&mut self, state: &mut State, part: &Part) -> Outcome {
        self.pass(&mut [(state, part)], None).remove(0)
    }
}
