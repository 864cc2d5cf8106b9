//! A session: a model, a device, and the state of one text.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool};

use super::{
    Model,
    batch::{Batch, Pass, PassInput, Wanted},
    text::Text,
};
use crate::{
    Error, Result,
    backend::{Buffer, Cpu, Device, DeviceChoice, Memory, Metal},
    format::CacheType,
    forward::{CHUNK, Observer, Phase},
    state::{Checkpoint, image_bytes},
};

/// Session options.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Context size in tokens; by default the model's training context.
    pub context: Option<usize>,
    /// Number of threads; by default one per available core.
    pub threads: Option<NonZeroUsize>,
    /// The device.
    pub device: DeviceChoice,
    /// The KV cache type.
    pub cache: CacheType,
    /// Whether to start from the stored state after the meta tokens rather than compute it.
    pub stored_meta_state: bool,
    /// Maximum tokens per pass.
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

/// A text being processed.
pub struct Session<'m> {
    pub(super) batch: Batch<'m>,
    text: Text,
    options: SessionOptions,
    /// The reason for a fallback, if any.
    fallback: Option<Error>,
    /// Maximum tokens per prefill pass.
    chunk: usize,
    /// The hidden state after the last token, if no logits were computed for it.
    hidden: Buffer,
}

impl<'m> Session<'m> {
    /// Returns a session with an empty text, in the state after the meta tokens.
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
            Err(reason) if options.device == DeviceChoice::Auto => Ok(Self { fallback: Some(reason), ..on_cpu()? }),
            result => result,
        }
    }

    /// [`Session::new`] on an open device.
    pub fn on(model: &'m Model, options: &SessionOptions, device: Device) -> Result<Self> {
        let config = model.config();
        let context = options.context.unwrap_or_else(|| config.default_context());
        let chunk = options.chunk.clamp(1, context.max(1));
        let hidden = device.zeros(config.hidden)?;
        let mut batch = Batch::new(model, device, chunk, options.stored_meta_state)?;
        let (text, options, fallback) = match batch.text(context, options.cache) {
            Err(reason @ Error::CacheRange { .. }) if options.cache != CacheType::F32 => {
                let options = SessionOptions { cache: CacheType::F32, ..options.clone() };
                (batch.text(context, options.cache)?, options, Some(reason))
            }
            text => (text?, options.clone(), None),
        };
        Ok(Self { batch, text, options, fallback, chunk, hidden })
    }

    /// Returns the batch and the text, for passes over several texts.
    pub fn parts(&mut self) -> (&mut Batch<'m>, &mut Text) {
        (&mut self.batch, &mut self.text)
    }

    /// Splits the session into its batch and its text.
    pub(super) fn into_parts(self) -> (Batch<'m>, Text) {
        (self.batch, self.text)
    }

    /// Prefills `ids`; returns the logits `[vocab]` after the last.
    pub fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        self.prefill_chunks(ids, cancel, None)?;
        Ok(self.batch.logits(0))
    }

    /// [`Session::prefill`] with an observer of every layer.
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

    /// Prefills `ids` and passes the logits `[vocab]` after each of them to `each`.
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

    /// Decodes one token; returns the logits `[vocab]` after it.
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.pass(&[id], Phase::Decode, Wanted::Last, None, None)?.commit_only(None)?;
        Ok(self.batch.logits(0))
    }

    /// Verifies a draft: processes a token and draft tokens after it, at most
    /// [`DECODE_TOKENS`](crate::forward::DECODE_TOKENS) in all, with logits after each. Nothing is added to the text
    /// until the caller commits the accepted tokens as text 0 of the pass.
    pub fn verify<'a>(&'a mut self, ids: &'a [u32], cancel: Option<&'a AtomicBool>) -> Result<Pass<'a, 'm>> {
        self.pass(ids, Phase::Decode, Wanted::All, cancel, None)
    }

    /// Processes `ids` in `phase` without computing logits: see [`Session::last_logits`].
    pub(super) fn advance(&mut self, ids: &[u32], phase: Phase, cancel: &AtomicBool) -> Result<()> {
        self.check(ids)?;
        for ids in ids.chunks(self.chunk) {
            let Self { batch, text, hidden, .. } = self;
            let read = PassInput { text, ids, phase, logits: Wanted::Nothing, cancel: Some(cancel) };
            batch.run([read])?.commit_only(Some(hidden))?;
        }
        Ok(())
    }

    /// Returns the logits `[vocab]` after the last token, which [`Session::advance`] processed.
    pub(super) fn last_logits(&mut self) -> Result<&[f32]> {
        self.batch.logits_after(&mut self.text, &self.hidden)
    }

    /// Resets the session to an empty text.
    pub fn clear(&mut self) -> Result<()> {
        self.batch.clear(&mut self.text)
    }

    /// Returns the maximum number of tokens per prefill pass.
    pub fn chunk_tokens(&self) -> usize {
        self.chunk
    }

    /// Returns the number of tokens processed.
    pub fn tokens(&self) -> usize {
        self.text.tokens()
    }

    /// Returns the context size in tokens.
    pub fn context(&self) -> usize {
        self.text.context()
    }

    /// Returns the size of the KV cache, conv and SSM state in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.text.bytes()
    }

    /// Returns the KV cache type.
    pub fn cache_type(&self) -> CacheType {
        self.options.cache
    }

    /// Returns the model.
    pub fn model(&self) -> &'m Model {
        self.batch.model()
    }

    /// Returns the fallback reason: why the session runs on the CPU instead of a GPU, or with a wider KV cache.
    pub fn fallback(&self) -> Option<&Error> {
        self.fallback.as_ref()
    }

    /// Whether [`Session::fall_back`] can continue after the error `failed`: a lost GPU, or a value beyond the KV
    /// cache's range.
    pub(super) fn can_fall_back(&self, failed: &Error) -> bool {
        match failed {
            Error::Gpu(_) => self.options.device == DeviceChoice::Auto,
            Error::CacheRange { .. } => self.options.cache != CacheType::F32,
            _ => false,
        }
    }

    /// Restarts as an empty session on the CPU, with a wider KV cache if that is the `reason`; the text is lost.
    pub(super) fn fall_back(&mut self, reason: Error) -> Result<()> {
        let cache = if matches!(reason, Error::CacheRange { .. }) { CacheType::F32 } else { self.options.cache };
        let options = SessionOptions { device: DeviceChoice::Cpu, cache, ..self.options.clone() };
        let session = Self::on(self.model(), &options, Device::cpu_only(options.threads))?;
        *self = Self { fallback: Some(reason), ..session };
        Ok(())
    }

    /// Returns a checkpoint of the text. It copies the windowed layers' KV rows and the conv and SSM states. With the
    /// rows of global layers it can be restored after any text; without, it is valid while the text before it is
    /// unchanged.
    pub fn checkpoint(&mut self, with_global_layers: bool) -> Result<Checkpoint> {
        self.batch.checkpoint(&self.text, with_global_layers)
    }

    /// Restores a checkpoint of this session's text and drops the text after it.
    ///
    /// # Panics
    /// If the text ends before the checkpoint, and the checkpoint is without global layers.
    pub fn restore(&mut self, checkpoint: &Checkpoint) {
        self.batch.restore(&mut self.text, checkpoint);
    }

    /// Appends the state's bytes to `out`, for a file; without global layers, those of such a checkpoint.
    pub(super) fn write_image(&mut self, with_global_layers: bool, out: &mut Vec<u8>) {
        let (config, cache) = (self.model().config(), self.options.cache);
        self.text.state.write_image(&mut self.batch.device, config, cache, with_global_layers, out);
    }

    /// Returns how many bytes [`Session::write_image`] appends after `tokens` tokens of text.
    pub(super) fn image_bytes(&self, tokens: usize, with_global_layers: bool) -> usize {
        image_bytes(self.model().config(), self.options.cache, tokens, with_global_layers)
    }

    /// Restores the state that was written after `tokens` tokens of text.
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
        batch.run_observed([PassInput { text, ids, phase, logits, cancel }], observe)
    }

    /// Fails unless all of `ids` can be processed.
    fn check(&self, ids: &[u32]) -> Result<()> {
        PassInput::check_ids(ids, self.model().config().vocab)?;
        self.check_fits(ids.len())
    }

    /// Fails unless `needed` more tokens fit.
    pub(super) fn check_fits(&self, needed: usize) -> Result<()> {
        self.text.check_fits(needed)
    }
}
