//! A session: a model, a device, and the state of the text read so far.

use std::{num::NonZeroUsize, ops::Range, sync::atomic::AtomicBool};

use super::Model;
use crate::{
    Error, Result,
    backend::{Cpu, Device, DeviceChoice, Metal},
    format::CacheType,
    forward::{CHUNK, Chunk, Input, MetaPass, Observer, Phase, Room, Scratch},
    state::{Checkpoint, MetaState, State, image_bytes},
    system,
};

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens of text that fit; by default what the model was trained for.
    pub context: Option<usize>,
    /// Threads; by default one for each core that the process may use.
    pub threads: Option<NonZeroUsize>,
    /// What to compute with.
    pub device: DeviceChoice,
    /// How keys and values are stored.
    pub cache: CacheType,
    /// Whether to start from the state after the meta tokens that the file holds, or to compute it.
    pub stored_meta_state: bool,
    /// Tokens that a pass reads at most.
    pub chunk: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            context: None,
            threads: None,
            device: DeviceChoice::default(),
            cache: CacheType::default(),
            stored_meta_state: true,
            chunk: CHUNK,
        }
    }
}

/// A text being read and written.
pub struct Session<'m> {
    model: &'m Model,
    pub(super) device: Device,
    options: SessionOptions,
    /// Why the session is not what was asked for, if it is not.
    fallback: Option<Error>,
    state: State,
    scratch: Scratch,
    context: usize,
    /// Tokens of the last pass, whose activations are in the scratch.
    last_pass: usize,
    /// The state after the meta tokens, if it had to be computed.
    meta_state: Option<MetaState>,
}

impl<'m> Session<'m> {
    /// An empty text: the meta tokens are read, nothing more.
    pub fn new(model: &'m Model, options: &SessionOptions) -> Result<Self> {
        let on_cpu = || Self::on(model, options, Device::cpu_only(options.threads));
        if options.device == DeviceChoice::Cpu || (options.device == DeviceChoice::Auto && Metal::names().is_empty()) {
            return on_cpu();
        }
        let gpu = || {
            let metal = Metal::open(model.weights().token_embd.data.whole(), model.config().state)?;
            Self::on(model, options, Device::new(Cpu::new(NonZeroUsize::MIN), Some(metal)))
        };
        match gpu() {
            Err(why) if options.device == DeviceChoice::Auto => Ok(Self { fallback: Some(why), ..on_cpu()? }),
            result => result,
        }
    }

    /// [`Session::new`] on a device that is open already.
    pub fn on(model: &'m Model, options: &SessionOptions, device: Device) -> Result<Self> {
        let config = model.config();
        let block = options.cache.dtype().block_len();
        if !config.key_dim.is_multiple_of(block) || !config.value_dim.is_multiple_of(block) {
            let (cache, key_dim, value_dim) = (options.cache.name(), config.key_dim, config.value_dim);
            return Err(Error::CacheTypeWidth { cache, key_dim, value_dim, block });
        }
        let context = options.context.unwrap_or_else(|| config.default_context());
        let state = State::new(&device, config, context, options.cache)?;
        let wanted = state.bytes as u64;
        if let available @ Some(_) = system::available_memory().filter(|&there| wanted > there) {
            return Err(Error::OutOfMemory { wanted, available });
        }
        let chunk = options.chunk.clamp(1, context.max(1));
        let mut scratch = Scratch::new(&device, Room { config, chunk, cache: options.cache })?;
        scratch.hold_logits(&device, 1)?;
        let mut session = Self {
            model,
            device,
            options: options.clone(),
            fallback: None,
            state,
            scratch,
            context,
            last_pass: 0,
            meta_state: None,
        };
        match session.clear() {
            Err(why @ Error::CacheRange { .. }) if options.cache != CacheType::F32 => {
                let options = SessionOptions { cache: CacheType::F32, ..session.options };
                Ok(Self { fallback: Some(why), ..Self::on(model, &options, session.device)? })
            }
            cleared => cleared.map(|()| session),
        }
    }

    /// Reads `ids` as a prompt; returns the logits `[vocab]` after the last.
    pub fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        self.prefill_chunks(ids, cancel, None)?;
        self.logits(1)
    }

    /// [`Session::prefill`] with a look at every layer.
    pub fn prefill_observed(&mut self, ids: &[u32], cancel: &AtomicBool, observe: Observer<'_>) -> Result<&[f32]> {
        self.prefill_chunks(ids, cancel, Some(observe))?;
        self.logits(1)
    }

    fn prefill_chunks(&mut self, ids: &[u32], cancel: &AtomicBool, mut observe: Option<Observer<'_>>) -> Result<()> {
        self.check(ids)?;
        let mut chunks = ids.chunks(self.scratch.chunk()).peekable();
        while let Some(chunk) = chunks.next() {
            Error::check_cancelled(cancel)?;
            let logits = if chunks.peek().is_none() { chunk.len() - 1..chunk.len() } else { 0..0 };
            let observe: Option<Observer<'_>> = match &mut observe {
                Some(observe) => Some(*observe),
                None => None,
            };
            self.pass(chunk, Phase::Prefill, logits, observe)?;
        }
        Ok(())
    }

    /// Reads `ids` as a prompt, and hands the logits `[vocab]` after each of them to `each`.
    pub fn prefill_all(
        &mut self,
        ids: &[u32],
        cancel: &AtomicBool,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check(ids)?;
        self.scratch.hold_logits(&self.device, ids.len().min(self.scratch.chunk()))?;
        let (chunk, vocab) = (self.scratch.chunk(), self.model.config().vocab);
        for (i, ids) in ids.chunks(chunk).enumerate() {
            Error::check_cancelled(cancel)?;
            self.pass(ids, Phase::Prefill, 0..ids.len(), None)?;
            for (t, logits) in self.logits(ids.len())?.chunks(vocab).enumerate() {
                each(i * chunk + t, logits)?;
            }
        }
        Ok(())
    }

    /// Reads a generated token; returns the logits `[vocab]` after it.
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.check(&[id])?;
        self.pass(&[id], Phase::Decode, 0..1, None)?;
        self.logits(1)
    }

    /// Reads `ids` by the rule of `phase` and computes no logits: see [`Session::last_logits`].
    pub(super) fn advance(&mut self, ids: &[u32], phase: Phase) -> Result<()> {
        self.check(ids)?;
        ids.chunks(self.scratch.chunk()).try_for_each(|chunk| self.pass(chunk, phase, 0..0, None))
    }

    /// Returns the logits `[vocab]` after the last token, which the last call has read.
    pub(super) fn last_logits(&mut self) -> Result<&[f32]> {
        let tokens = self.last_pass;
        let (mut chunk, weights) = self.chunk(tokens, Phase::Prefill);
        chunk.logits(weights, tokens - 1..tokens)?;
        self.logits(1)
    }

    /// Forgets the text: the session is as new.
    pub fn clear(&mut self) -> Result<()> {
        self.state.clear(&mut self.device);
        let config = self.model.config();
        if config.meta_tokens == 0 {
            return Ok(());
        }
        let stored = if self.options.stored_meta_state { self.model.stored_meta_state() } else { None };
        if stored.is_none() && self.meta_state.is_none() {
            let pass = MetaPass { backend: &mut self.device, config, weights: self.model.weights() };
            self.meta_state = Some(pass.run(None)?);
        }
        match stored.or(self.meta_state.as_ref()) {
            Some(meta) => meta.put(&mut self.device, config, &mut self.state, self.options.cache),
            None => Ok(()),
        }
    }

    /// Returns how many tokens a pass reads at most.
    pub fn chunk_tokens(&self) -> usize {
        self.scratch.chunk()
    }

    /// Returns how many tokens of text are read.
    pub fn tokens(&self) -> usize {
        self.state.position - self.model.config().meta_tokens
    }

    /// Returns how many tokens of text fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns the bytes of keys, values, conv and SSM state.
    pub fn cache_bytes(&self) -> usize {
        self.state.bytes
    }

    /// How keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.options.cache
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Why the session is not what was asked for: it works on the CPU though a GPU was preferred, or its KV cache is wider.
    pub fn fallback(&self) -> Option<&Error> {
        self.fallback.as_ref()
    }

    /// Whether [`Session::fall_back`] can continue after `failed`: a lost GPU, a value beyond the KV cache's type.
    pub(super) fn can_fall_back(&self, failed: &Error) -> bool {
        match failed {
            Error::Gpu(_) => self.options.device == DeviceChoice::Auto,
            Error::CacheRange { .. } => self.options.cache != CacheType::F32,
            _ => false,
        }
    }

    /// Becomes an empty session on the CPU, with a wider KV cache if that was the `reason`; the text is lost.
    pub(super) fn fall_back(&mut self, reason: Error) -> Result<()> {
        let cache = if matches!(reason, Error::CacheRange { .. }) { CacheType::F32 } else { self.options.cache };
        let options = SessionOptions { device: DeviceChoice::Cpu, cache, ..self.options.clone() };
        let session = Self::on(self.model, &options, Device::cpu_only(options.threads))?;
        *self = Self { fallback: Some(reason), ..session };
        Ok(())
    }

    /// Returns a checkpoint of the text as it is now. It costs a copy of the windowed layers' rows and the conv and SSM
    /// states, no evaluation. With the rows of global layers it can be restored after any text; without, it is good for
    /// as long as the text before it stays the same.
    pub fn checkpoint(&mut self, with_global_layers: bool) -> Result<Checkpoint> {
        self.state.checkpoint(&mut self.device, self.model.config(), self.options.cache, with_global_layers)
    }

    /// Goes back to a checkpoint of this session's text; what comes after it is forgotten.
    ///
    /// # Panics
    /// If the text ends before the checkpoint, and the checkpoint is without global layers.
    pub fn restore(&mut self, checkpoint: &Checkpoint) {
        self.state.restore(&mut self.device, self.model.config(), checkpoint);
    }

    /// Appends the state's bytes to `out`, for a file; without global layers those that such a checkpoint holds.
    pub(super) fn write_image(&mut self, with_global_layers: bool, out: &mut Vec<u8>) {
        let (config, cache) = (self.model.config(), self.options.cache);
        self.state.write_image(&mut self.device, config, cache, with_global_layers, out);
    }

    /// Returns how many bytes [`Session::write_image`] appends after `tokens` tokens of text.
    pub(super) fn image_bytes(&self, tokens: usize, with_global_layers: bool) -> usize {
        image_bytes(self.model.config(), self.options.cache, tokens, with_global_layers)
    }

    /// Becomes the state that was written after `tokens` tokens of text.
    pub(super) fn read_image(&mut self, tokens: usize, with_global_layers: bool, image: &[u8]) {
        let (config, cache) = (self.model.config(), self.options.cache);
        self.state.read_image(&mut self.device, config, cache, with_global_layers, tokens, image);
    }

    fn chunk(&mut self, tokens: usize, phase: Phase) -> (Chunk<'_>, &'m crate::model::Weights) {
        let Self { model, device, state, scratch, .. } = self;
        (Chunk { backend: device, config: model.config(), state, scratch, tokens, phase }, model.weights())
    }

    fn pass(&mut self, ids: &[u32], phase: Phase, logits: Range<usize>, observe: Option<Observer<'_>>) -> Result<()> {
        self.last_pass = ids.len();
        let (mut chunk, weights) = self.chunk(ids.len(), phase);
        let observe = observe.map(|observe| observe as Observer<'_>); // of a lifetime as short as the chunk's
        let input = Input { table: &weights.token_embd, rows: ids, observe };
        let done = chunk.forward(weights, input).and_then(|()| match logits.is_empty() {
            true => chunk.backend.finish(),
            false => chunk.logits(weights, logits),
        });
        done.map_err(|e| match e {
            Error::NotFinite(_) => Error::format(self.model.file(), e.to_string()),
            e => e,
        })
    }

    /// The last pass's first `rows` rows of logits.
    fn logits(&self, rows: usize) -> Result<&[f32]> {
        self.model.check_file()?;
        let logits = &self.scratch.logits().f32()[..rows * self.model.config().vocab];
        if logits.iter().all(|v| v.is_finite()) {
            return Ok(logits);
        }
        Err(Error::format(
            self.model.file(),
            "made logits that are not finite: the weights are damaged, or do not bear this type; convert the model again",
        ))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab;
        if ids.is_empty() {
            return Err(Error::Request("there is nothing to read: give at least one token".into()));
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::TokenOutOfRange { id, vocab });
        }
        self.check_room(ids.len())
    }

    /// Fails unless `needed` more tokens fit.
    pub(super) fn check_room(&self, needed: usize) -> Result<()> {
        let free = self.context - self.tokens();
        if needed > free { Err(Error::ContextFull { needed, free, context: self.context }) } else { Ok(()) }
    }
}
