//! The part of a pass that belongs to one text.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::pending::Pending;
use crate::{Error, state::State};

/// Which positions a windowed layer sees; the official code has a rule for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading a prompt: W positions back, W + 1 with oneself.
    Prefill,
    /// Generating: W − 1 positions back, W with oneself.
    Decode,
}

/// Tokens of one text in a pass. In the decode phase up to [`DECODE_TOKENS`](super::DECODE_TOKENS) of them, of which any
/// number can be committed.
pub struct Segment<'a> {
    /// What the text so far has left behind; a pass leaves it as it is until [`Chunk::commit`](super::Chunk::commit).
    pub state: &'a mut State,
    /// Number of tokens.
    pub tokens: usize,
    /// What windowed layers see.
    pub phase: Phase,
    /// Which tokens' logits are wanted.
    pub logits: Range<usize>,
    /// Gives the segment up when it is set; looked at before every part of a layer.
    pub cancel: Option<&'a AtomicBool>,
    /// Why the segment was given up, if it was. Its rows mean nothing then; other segments go on as if it had never been.
    pub failed: Option<Error>,
}

impl Segment<'_> {
    /// Whether commit may take a part of it.
    pub(super) fn is_divisible(&self) -> bool {
        self.phase == Phase::Decode && self.tokens > 1
    }

    /// Gives it up if its caller wants that.
    pub(super) fn check_cancelled(&mut self) {
        if self.failed.is_none() && self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            self.failed = Some(Error::Cancelled);
        }
    }
}

/// The segments that were not given up, each with its rows in the pass, and what it will leave behind.
pub(super) fn live<'b, 's>(
    segments: &'b mut [Segment<'s>],
    pending: &'b mut [Pending],
) -> impl Iterator<Item = (Range<usize>, &'b mut Segment<'s>, &'b mut Pending)> {
    let mut end = 0;
    let placed = segments.iter_mut().zip(pending).map(move |(segment, pending)| {
        end += segment.tokens;
        (end - segment.tokens..end, segment, pending)
    });
    placed.filter(|(_, segment, _)| segment.failed.is_none())
}
