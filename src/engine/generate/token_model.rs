//! What reads ids and returns logits.

use std::sync::atomic::AtomicBool;

use crate::{Result, engine::Session};

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
}
