//! A segment: one text's part of a pass.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::pending::Pending;
use crate::{Error, state::State};

/// The mask of windowed layers; the official code has one for each phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Processing a prompt: W positions back, W + 1 including the current one.
    Prefill,
    /// Generating: W − 1 positions back, W including the current one.
    Decode,
}

/// Tokens of one text in a pass. In the decode phase up to [`DECODE_TOKENS`](super::DECODE_TOKENS) of them, of which any
/// number can be committed.
pub struct Segment<'a> {
    /// The text's state, unchanged by a pass until [`Chunk::commit`](super::Chunk::commit).
    pub state: &'a mut State,
    /// Number of tokens.
    pub tokens: usize,
    /// The phase, which determines the mask of windowed layers.
    pub phase: Phase,
    /// The tokens whose logits are requested.
    pub logits: Range<usize>,
    /// Cancels the segment when set; checked before every part of a layer.
    pub cancel: Option<&'a AtomicBool>,
    /// The segment's error, if it failed. Its rows are meaningless then; other segments are not affected.
    pub failed: Option<Error>,
}

impl Segment<'_> {
    /// Whether it can be committed partially.
    pub(super) fn is_divisible(&self) -> bool {
        self.phase == Phase::Decode && self.tokens > 1
    }

    /// Fails it if cancelled.
    pub(super) fn check_cancelled(&mut self) {
        if self.failed.is_none() && self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            self.failed = Some(Error::Cancelled);
        }
    }
}

/// Returns the segments that did not fail, with their rows in the pass and their pending results.
pub(super) fn unfailed<'b, 's>(
    segments: &'b mut [Segment<'s>],
    pending: &'b mut [Pending],
) -> impl Iterator<Item = (Range<usize>, &'b mut Segment<'s>, &'b mut Pending)> {
    let mut end = 0;
    let with_rows = segments.iter_mut().zip(pending).map(move |(segment, pending)| {
        end += segment.tokens;
        (end - segment.tokens..end, segment, pending)
    });
    with_rows.filter(|(_, segment, _)| segment.failed.is_none())
}
