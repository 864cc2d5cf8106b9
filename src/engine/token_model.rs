//! What generation needs of a session, or of what reads with one.

use std::sync::atomic::AtomicBool;

use super::Session;
use crate::{Result, forward::DECODE_TOKENS};

/// What generation needs of a [`Session`], or of what reads with one.
pub trait TokenModel {
    /// Reads `ids` and returns the logits `[vocab]` after the last of them. What knows the logits of what was read before
    /// takes no ids too.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]>;
    /// Reads one id and returns the logits `[vocab]` after it.
    fn decode(&mut self, id: u32) -> Result<&[f32]>;
    /// Returns how many ids were read so far.
    fn tokens(&self) -> usize;
    /// Returns how many ids fit.
    fn context(&self) -> usize;
    /// Returns how many guesses [`TokenModel::verify`] takes now, at most.
    fn most_guesses(&self) -> usize {
        0
    }
    /// Reads the first of `ids`, and as many of the others, guesses of what comes next, as turn out to be right. `is_right`
    /// gets the logits `[vocab]` after each token that is read, the first one's first, and returns whether the next of `ids`
    /// is read too. Everything is then as after so many calls of [`TokenModel::decode`], also where `is_right` fails.
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

    fn most_guesses(&self) -> usize {
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
    /// [`TokenModel::verify`]. Returns `None`, and everything is as before, if the pass failed: that may be due to a guess,
    /// which single steps would not have read.
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
