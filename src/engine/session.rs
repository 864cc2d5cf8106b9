//! A session: a model, a device, and the state of the text read so far.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool};

use super::{
    Model,
    batch::{Batch, Pass, Read, Wanted},
    text::Text,
};
use crate::{
    Error, Result,
    backend::{Buffer, Cpu, Device, DeviceChoice, Memory, Metal},
    format::CacheType,
    forward::{CHUNK, Observer, Phase},
    state::{Checkpoint, image_bytes},
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
    pub(super) batch: Batch<'m>,
    text: Text,
    options: SessionOptions,
    /// Why the session is not what was asked for, if it is not.
    fallback: Option<Error>,
    /// Tokens that a pass of a prompt reads at most.
    chunk: usize,
    /// The hidden state after the last token, where no logits were computed.
    hidden: Buffer,
}

impl<'m> Session<'m> {
    /// An empty text: the meta tokens are read, nothing more.
    pub fn new(model: &'m Model, options: &SessionOptions) -> Result<Self> {
        let on_cpu = || Self::on(model, options, Device::cpu_only(options.threads));
        if options.device == DeviceChoice::Cpu || (options.device == DeviceChoice::Auto && Metal::names().is_empty()) {
            return on_cpu();
        }
        let gpu = || {
            let metal = Metal::open(model.weights().token_embd.data.entire(), model.config().state)?;
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
        let context = options.context.unwrap_or_else(|| config.default_context());
        let chunk = options.chunk.clamp(1, context.max(1));
        let hidden = device.zeros(config.hidden)?;
        let mut batch = Batch::new(model, device, chunk, options.stored_meta_state)?;
        let (text, options, fallback) = match batch.text(context, options.cache) {
            Err(why @ Error::CacheRange { .. }) if options.cache != CacheType::F32 => {
                let options = SessionOptions { cache: CacheType::F32, ..options.clone() };
                (batch.text(context, options.cache)?, options, Some(why))
            }
            text => (text?, options.clone(), None),
        };
        Ok(Self { batch, text, options, fallback, chunk, hidden })
    }

    /// The device with the model, and the text: for passes over several texts, this one among them or not.
    pub fn parts(&mut self) -> (&mut Batch<'m>, &mut Text) {
        (&mut self.batch, &mut self.text)
    }

    /// The device with the model, and the text, apart from each other.
    pub(super) fn into_parts(self) -> (Batch<'m>, Text) {
        (self.batch, self.text)
    }

    /// Reads `ids` as a prompt; returns the logits `[vocab]` after the last.
    pub fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        self.prefill_chunks(ids, cancel, None)?;
        Ok(self.batch.logits(0))
    }

    /// [`Session::prefill`] with a look at every layer.
    pub fn prefill_observed(&mut self, ids: &[u32], cancel: &AtomicBool, observe: Observer<'_>) -> Result<&[f32]> {
        self.prefill_chunks(ids, cancel, Some(observe))?;
        Ok(self.batch.logits(0))
    }

    fn prefill_chunks(&mut self, ids: &[u32], cancel: &AtomicBool, mut observe: Option<Observer<'_>>) -> Result<()> {
        self.check(ids)?;
        let mut chunks = ids.chunks(self.chunk).peekable();
        while let Some(chunk) = chunks.next() {
            let logits = if chunks.peek().is_none() { Wanted::Last } else { Wanted::Nothing };
            let observe: Option<Observer<'_>> = match &mut observe {
                Some(observe) => Some(*observe),
                None => None,
            };
            self.pass(chunk, Phase::Prefill, logits, Some(cancel), observe)?.commit_only(None)?;
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
        let (chunk, vocab) = (self.chunk, self.model().config().vocab);
        for (i, ids) in ids.chunks(chunk).enumerate() {
            self.pass(ids, Phase::Prefill, Wanted::All, Some(cancel), None)?.commit_only(None)?;
            for (t, logits) in self.batch.logits(0).chunks(vocab).enumerate() {
                each(i * chunk + t, logits)?;
            }
        }
        Ok(())
    }

    /// Reads a generated token; returns the logits `[vocab]` after it.
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.pass(&[id], Phase::Decode, Wanted::Last, None, None)?.commit_only(None)?;
        Ok(self.batch.logits(0))
    }

    /// Reads a generated token and guesses of those after it, [`DECODE_TOKENS`](crate::forward::DECODE_TOKENS) at most,
    /// with logits after each. None is part of the text until the caller commits as many as are right: text 0 of the pass.
    pub fn verify<'a>(&'a mut self, ids: &'a [u32], cancel: Option<&'a AtomicBool>) -> Result<Pass<'a, 'm>> {
        self.pass(ids, Phase::Decode, Wanted::All, cancel, None)
    }

    /// Reads `ids` by the rule of `phase` and computes no logits: see [`Session::last_logits`].
    pub(super) fn advance(&mut self, ids: &[u32], phase: Phase, cancel: &AtomicBool) -> Result<()> {
        self.check(ids)?;
        for ids in ids.chunks(self.chunk) {
            let Self { batch, text, hidden, .. } = self;
            let read = Read { text, ids, phase, logits: Wanted::Nothing, cancel: Some(cancel) };
            batch.run([read])?.commit_only(Some(hidden))?;
        }
        Ok(())
    }

    /// Returns the logits `[vocab]` after the last token, which [`Session::advance`] has read.
    pub(super) fn last_logits(&mut self) -> Result<&[f32]> {
        self.batch.logits_after(&mut self.text, &self.hidden)
    }

    /// Forgets the text: the session is as new.
    pub fn clear(&mut self) -> Result<()> {
        self.batch.clear(&mut self.text)
    }

    /// Returns how many tokens a pass reads at most.
    pub fn chunk_tokens(&self) -> usize {
        self.chunk
    }

    /// Returns how many tokens of text are read.
    pub fn tokens(&self) -> usize {
        self.text.tokens()
    }

    /// Returns how many tokens of text fit.
    pub fn context(&self) -> usize {
        self.text.context()
    }

    /// Returns the bytes of keys, values, conv and SSM state.
    pub fn cache_bytes(&self) -> usize {
        self.text.bytes()
    }

    /// How keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.options.cache
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.batch.model()
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
        let session = Self::on(self.model(), &options, Device::cpu_only(options.threads))?;
        *self = Self { fallback: Some(reason), ..session };
        Ok(())
    }

    /// Returns a checkpoint of the text as it is now. It costs a copy of the windowed layers' rows and the conv and SSM
    /// states, no evaluation. With the rows of global layers it can be restored after any text; without, it is good for
    /// as long as the text before it stays the same.
    pub fn checkpoint(&mut self, with_global_layers: bool) -> Result<Checkpoint> {
        self.batch.checkpoint(&self.text, with_global_layers)
    }

    /// Goes back to a checkpoint of this session's text; what comes after it is forgotten.
    ///
    /// # Panics
    /// If the text ends before the checkpoint, and the checkpoint is without global layers.
    pub fn restore(&mut self, checkpoint: &Checkpoint) {
        self.batch.restore(&mut self.text, checkpoint);
    }

    /// Appends the state's bytes to `out`, for a file; without global layers those that such a checkpoint holds.
    pub(super) fn write_image(&mut self, with_global_layers: bool, out: &mut Vec<u8>) {
        let (config, cache) = (self.model().config(), self.options.cache);
        self.text.state.write_image(&mut self.batch.device, config, cache, with_global_layers, out);
    }

    /// Returns how many bytes [`Session::write_image`] appends after `tokens` tokens of text.
    pub(super) fn image_bytes(&self, tokens: usize, with_global_layers: bool) -> usize {
        image_bytes(self.model().config(), self.options.cache, tokens, with_global_layers)
    }

    /// Becomes the state that was written after `tokens` tokens of text.
    pub(super) fn read_image(&mut self, tokens: usize, with_global_layers: bool, image: &[u8]) {
        let (config, cache) = (self.model().config(), self.options.cache);
        self.text.state.read_image(&mut self.batch.device, config, cache, with_global_layers, tokens, image);
    }

    fn pass<'a>(
        &'a mut self,
        ids: &'a [u32],
        phase: Phase,
        logits: Wanted,
        cancel: Option<&'a AtomicBool>,
        observe: Option<Observer<'_>>,
    ) -> Result<Pass<'a, 'm>> {
        let Self { batch, text, .. } = self;
        batch.run_observed([Read { text, ids, phase, logits, cancel }], observe)
    }

    /// Fails unless all of `ids` can be read.
    fn check(&self, ids: &[u32]) -> Result<()> {
        Read::check_ids(ids, self.model().config().vocab)?;
        self.check_room(ids.len())
    }

    /// Fails unless `needed` more tokens fit.
    pub(super) fn check_room(&self, needed: usize) -> Result<()> {
        self.text.check_room(needed)
    }
}
