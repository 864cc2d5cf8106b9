//! Batched passes: the weights are read once for several texts.

use std::{mem::replace, sync::atomic::AtomicBool};

use super::{Model, text::Text};
use crate::{
    Error, Result,
    backend::{Backend, Buffer, Device, Op},
    format::CacheType,
    forward::{Chunk, DECODE_TOKENS, Input, MetaPass, Observer, Phase, Scratch, ScratchSize, Segment},
    state::{Checkpoint, MetaState},
    system,
};

/// Which logits of a [`PassInput`] are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None.
    Nothing,
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
}

/// One text's part of a pass.
pub struct PassInput<'a> {
    /// The text, which must belong to the batch that runs the pass.
    pub text: &'a mut Text,
    /// Its next tokens. In the decode phase at most [`DECODE_TOKENS`]: a sampled token followed by a draft.
    pub ids: &'a [u32],
    /// Their phase.
    pub phase: Phase,
    /// Which logits are wanted.
    pub logits: Wanted,
    /// Cancels this text's part of the pass when set; checked several times per layer.
    pub cancel: Option<&'a AtomicBool>,
}

/// A device with a model's weights and buffers for passes over texts.
pub struct Batch<'m> {
    model: &'m Model,
    pub(super) device: Device,
    scratch: Scratch,
    /// Whether texts start from the stored state after the meta tokens.
    stored_meta_state: bool,
    /// The computed state after the meta tokens, if it was not stored.
    meta_state: Option<MetaState>,
}

impl<'m> Batch<'m> {
    /// Returns a batch on `device` with buffers for passes of `rows` tokens; they grow for longer passes.
    pub fn new(model: &'m Model, device: Device, rows: usize, stored_meta_state: bool) -> Result<Self> {
        let size = ScratchSize { config: model.config(), rows, cache: CacheType::default() };
        let scratch = Scratch::new(&device, size)?;
        Ok(Self { model, device, scratch, stored_meta_state, meta_state: None })
    }

    /// Returns the model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Returns an empty text with a context of `context` tokens.
    pub fn text(&mut self, context: usize, cache: CacheType) -> Result<Text> {
        let mut text = Text::new(&self.device, self.model.config(), context, cache)?;
        let wanted = text.state.bytes as u64;
        if let available @ Some(_) = system::available_memory().filter(|&available| wanted > available) {
            return Err(Error::OutOfMemory { wanted, available });
        }
        self.clear(&mut text)?;
        Ok(text)
    }

    /// Resets `text` to the state after the meta tokens.
    pub fn clear(&mut self, text: &mut Text) -> Result<()> {
        text.state.clear(&mut self.device);
        let config = self.model.config();
        if config.meta_tokens == 0 {
            return Ok(());
        }
        let stored = if self.stored_meta_state { self.model.stored_meta_state() } else { None };
        if stored.is_none() && self.meta_state.is_none() {
            let (backend, weights) = (&mut self.device, self.model.weights());
            let pass = MetaPass { backend, config, weights, cancel: None };
            self.meta_state = Some(pass.run(None)?);
        }
        match stored.or(self.meta_state.as_ref()) {
            Some(meta) => meta.put(&mut self.device, config, &mut text.state),
            None => Ok(()),
        }
    }

    /// Runs a pass over some texts, which are unchanged until [`Pass::commit`]. An error concerns all texts; a failure
    /// of one text is its [`Pass::error`] and does not affect the bits of the others.
    pub fn run<'a>(&'a mut self, inputs: impl IntoIterator<Item = PassInput<'a>>) -> Result<Pass<'a, 'm>> {
        self.run_observed(inputs, None)
    }

    /// [`Batch::run`] with an observer of every layer.
    pub fn run_observed<'a>(
        &'a mut self,
        inputs: impl IntoIterator<Item = PassInput<'a>>,
        observe: Option<Observer<'_>>,
    ) -> Result<Pass<'a, 'm>> {
        let (config, weights) = (self.model.config(), self.model.weights());
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        for input in inputs {
            let failed = input.check(config.vocab).err();
            let tokens = if failed.is_none() { input.ids.len() } else { 0 };
            ids.extend(&input.ids[..tokens]);
            let logits = match input.logits {
                Wanted::Nothing => 0..0,
                Wanted::Last => tokens.saturating_sub(1)..tokens,
                Wanted::All => 0..tokens,
            };
            let PassInput { text: Text { state, .. }, phase, cancel, .. } = input;
            segments.push(Segment { state, tokens, phase, logits, cancel, failed });
        }
        let Self { device, scratch, .. } = self;
        scratch.prepare(device, config, &segments)?;
        let mut chunk = Chunk { backend: device, config, segments: &mut segments, scratch };
        let observe = observe.map(|observe| observe as Observer<'_>); // shortened to the ids' lifetime
        chunk.forward(weights, Input { ids: &ids, observe })?;
        chunk.logits(weights)?;
        let mut pass = Pass { batch: self, segments };
        pass.check()?;
        Ok(pass)
    }

    /// Returns a checkpoint of a text as it is now, see [`Session::checkpoint`](super::Session::checkpoint).
    pub fn checkpoint(&mut self, text: &Text, with_global_layers: bool) -> Result<Checkpoint> {
        text.state.checkpoint(&mut self.device, self.model.config(), text.state.cache, with_global_layers)
    }

    /// Restores `text` to a checkpoint; with global layers, a checkpoint of any text with this cache type and context.
    ///
    /// # Panics
    /// If the text is shorter than at the checkpoint and the checkpoint has no global layers.
    pub fn restore(&mut self, text: &mut Text, checkpoint: &Checkpoint) {
        text.state.restore(&mut self.device, self.model.config(), checkpoint);
    }

    /// Copies the hidden state after the last token of the pass's first text to `to`, for [`Batch::logits_after`].
    fn keep_hidden(&mut self, token: usize, to: &mut Buffer) {
        let width = self.model.config().hidden;
        let from = (&*self.scratch.hidden_mut(), token);
        self.device.run(Op::CopyRows { from, to: (to, 0), rows: 1, width });
    }

    /// Returns the logits computed from a hidden state.
    pub(super) fn logits_after(&mut self, text: &mut Text, hidden: &Buffer) -> Result<&[f32]> {
        let Self { model, device, scratch, .. } = self;
        let (config, state) = (model.config(), &mut text.state);
        let phase = Phase::Decode;
        let segments = &mut [Segment { state, tokens: 1, phase, logits: 0..1, cancel: None, failed: None }];
        scratch.prepare(device, config, segments)?;
        let to = (scratch.hidden_mut(), 0);
        device.run(Op::CopyRows { from: (hidden, 0), to, rows: 1, width: config.hidden });
        Chunk { backend: device, config, segments, scratch }.logits(model.weights())?;
        self.finite_logits(0)
    }

    /// Returns the logits of the last pass's text `i`.
    pub(super) fn logits(&self, i: usize) -> &[f32] {
        self.scratch.logits(i)
    }

    fn finite_logits(&self, i: usize) -> Result<&[f32]> {
        let logits = self.scratch.logits(i);
        if logits.iter().all(|v| v.is_finite()) {
            return Ok(logits);
        }
        Err(Error::format(
            self.model.file(),
            "produced logits that are not finite: the weights are damaged or too sensitive for their quantization type; convert the model again",
        ))
    }
}

impl PassInput<'_> {
    /// Fails if there are no tokens, or one is not in the vocabulary.
    pub(super) fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::Request("no tokens to process: at least one is needed".into()));
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(Error::TokenOutOfRange { id, vocab }),
            None => Ok(()),
        }
    }

    /// Fails if the text cannot take these tokens.
    fn check(&self, vocab: usize) -> Result<()> {
        Self::check_ids(self.ids, vocab)?;
        let tokens = self.ids.len();
        if self.phase == Phase::Decode && tokens > DECODE_TOKENS {
            return Err(Error::Request(format!("a decode pass takes at most {DECODE_TOKENS} tokens, not {tokens}")));
        }
        self.text.check_fits(tokens)
    }
}

/// A completed pass. Tokens that are not committed have no effect.
pub struct Pass<'a, 'm> {
    batch: &'a mut Batch<'m>,
    segments: Vec<Segment<'a>>,
}

impl Pass<'_, '_> {
    /// Fails texts whose logits are not finite, and adds the file's name to errors.
    fn check(&mut self) -> Result<()> {
        let file = self.batch.model.file();
        if self.segments.iter().any(|segment| !segment.logits.is_empty()) {
            self.batch.model.check_file()?;
        }
        for (i, segment) in self.segments.iter_mut().enumerate() {
            segment.failed = match segment.failed.take() {
                Some(e @ Error::NotFinite(_)) => Some(Error::format(file, e.to_string())),
                Some(e) => Some(e),
                None => self.batch.finite_logits(i).err(),
            };
        }
        Ok(())
    }

    /// Returns the error of text `i`, if any.
    pub fn error(&self, i: usize) -> Option<&Error> {
        self.segments[i].failed.as_ref()
    }

    /// Returns the requested logits of text `i` `[tokens, vocab]`, or its error: the original one on the first call,
    /// then [`Error::Cancelled`].
    pub fn logits(&mut self, i: usize) -> Result<&[f32]> {
        match &mut self.segments[i].failed {
            Some(error) => Err(replace(error, Error::Cancelled)),
            None => Ok(self.batch.logits(i)),
        }
    }

    /// Commits the first `accepted` tokens to text `i` and drops the others; in the prefill phase all or none. To be
    /// called once per text.
    ///
    /// # Panics
    /// If the text failed, has fewer tokens, or `accepted` is some but not all of a prefill.
    pub fn commit(&mut self, i: usize, accepted: usize) {
        let Batch { model, device, scratch, .. } = &mut *self.batch;
        let mut chunk = Chunk { backend: device, config: model.config(), segments: &mut self.segments, scratch };
        chunk.commit(model.weights(), i, accepted);
    }

    /// Commits all tokens of the only text, and stores the hidden state after the last one.
    pub(super) fn commit_only(&mut self, keep: Option<&mut Buffer>) -> Result<()> {
        self.logits(0)?;
        let tokens = self.segments[0].tokens;
        if let Some(keep) = keep {
            self.batch.keep_hidden(tokens - 1, keep);
        }
        self.commit(0, tokens);
        Ok(())
    }
}
