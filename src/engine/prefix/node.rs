//! A node of the prefix tree.

use std::ops::Range;

use crate::{
    Result,
    backend::Memory,
    forward::Phase,
    model::Config,
    state::{Recurrent, Rows},
};

/// A token and the phase in which it was processed.
pub type Step = (u32, Phase);

/// A run of tokens with the state that they add to that of the preceding ones.
pub(super) struct Node {
    /// `None` for the root of an owner's tree.
    pub parent: Option<usize>,
    pub children: Vec<usize>,
    /// Number of preceding tokens.
    pub start: usize,
    pub steps: Vec<Step>,
    /// KV rows of the tokens.
    pub rows: Option<Rows>,
    /// The state needed to continue after the node. Missing where prefixes diverge, unless a state was stored there.
    pub end: Option<End>,
    /// Whether the folder has this version of the node.
    pub is_saved: bool,
}

/// The state after a node's last token.
pub(super) struct End {
    pub recurrent: Recurrent,
    /// Logits `[vocab]`; empty if they were not computed.
    pub logits: Vec<f32>,
    /// Time of last use, as a counter.
    pub used: u64,
}

impl Node {
    /// Returns a root node.
    pub fn root() -> Self {
        let (parent, children, steps) = (None, Vec::new(), Vec::new());
        Self { parent, children, start: 0, steps, rows: None, end: None, is_saved: true }
    }

    /// Returns the number of tokens up to its end.
    pub fn stop(&self) -> usize {
        self.start + self.steps.len()
    }

    /// Returns its size in bytes.
    pub fn bytes(&self, c: &Config) -> usize {
        let end = self.end.as_ref().map_or(0, |end| Recurrent::bytes(c) + size_of_val(&end.logits[..]));
        size_of_val(&self.steps[..]) + self.rows.as_ref().map_or(0, |rows| rows.bytes(c)) + end
    }

    /// Splits off the first `count` steps as a new node without an end state, which is returned. The caller links the
    /// nodes.
    pub fn split_off_first(&mut self, memory: &mut dyn Memory, c: &Config, count: usize) -> Result<Self> {
        let at = self.start + count;
        let halves = self.rows.as_ref().map(|rows| rows.split(memory, c, at)).transpose()?;
        let (first, second) = halves.map_or((None, None), |[first, second]| (Some(first), Some(second)));
        let steps = self.steps.drain(..count).collect();
        let (parent, start) = (self.parent, self.start);
        (self.rows, self.start, self.is_saved) = (second, at, false);
        Ok(Self { parent, children: Vec::new(), start, steps, rows: first, end: None, is_saved: false })
    }
}

/// Returns the ranges of decoded steps.
pub fn decoded(steps: &[Step]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match ranges.last_mut() {
            _ if step.1 == Phase::Prefill => {}
            Some(last) if last.end == i => last.end = i + 1,
            _ => ranges.push(i..i + 1),
        }
    }
    ranges
}
