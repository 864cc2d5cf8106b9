//! The interface between generation and a session.

use std::sync::atomic::AtomicBool;

use super::Session;
use crate::{Result, forward::DECODE_TOKENS};

/// A model that generation can run: a [`Session`], or a type built on one.
pub trait TokenModel {
    /// Processes `ids` and returns the logits `[vocab]` after the last one. Implementations that keep the last logits
    /// accept empty `ids`.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]>;
    /// Processes one token and returns the logits `[vocab]` after it.
    fn decode(&mut self, id: u32) -> Result<&[f32]>;
    /// Returns the number of tokens processed.
    fn tokens(&self) -> usize;
    /// Returns the context size in tokens.
    fn context(&self) -> usize;
    /// Returns the maximum number of draft tokens that [`TokenModel::verify`] accepts now.
    fn max_guesses(&self) -> usize {
        0
    }
    /// Processes the first of `ids`, and as many of the following draft tokens as are accepted. `is_right` receives the
    /// logits `[vocab]` after each processed token in order, and returns whether the next of `ids` is accepted. The
    /// resulting state is the same as after individual calls of [`TokenModel::decode`], also if `is_right` fails.
    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        is_right(self.decode(ids[0])?).map(drop)
    }
}

impl TokenModel for Session<'_> {
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        Session::prefill(self, ids, cancel)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        Session::decode(self, id)
    }

    fn tokens(&self) -> usize {
        Session::tokens(self)
    }

    fn context(&self) -> usize {
        Session::context(self)
    }

    fn max_guesses(&self) -> usize {
        (DECODE_TOKENS - 1).min((self.context() - self.tokens()).saturating_sub(1))
    }

    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        match self.verify_guesses(ids, is_right) {
            Some(outcome) => outcome,
            None => is_right(Session::decode(self, ids[0])?).map(drop),
        }
    }
}

impl Session<'_> {
    /// [`TokenModel::verify`]. Returns `None`, with the state unchanged, if the pass failed: a draft token may be the
    /// cause, which single steps would not process.
    pub(super) fn verify_guesses(
        &mut self,
        ids: &[u32],
        is_right: &mut dyn FnMut(&[f32]) -> Result<bool>,
    ) -> Option<Result<()>> {
        let vocab = self.model().config().vocab;
        let mut pass = self.verify(ids, None).ok()?;
        let (mut read, mut outcome) = (0, Ok(true));
        for logits in pass.logits(0).ok()?.chunks(vocab) {
            (read, outcome) = (read + 1, is_right(logits));
            if !matches!(outcome, Ok(true)) {
                break;
            }
        }
        pass.commit(0, read.min(ids.len()));
        Some(outcome.map(drop))
    }
}
