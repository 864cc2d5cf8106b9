//! A node of the tree of prefixes.

use std::ops::Range;

use crate::{
    Result,
    backend::Memory,
    forward::Phase,
    model::Config,
    state::{Recurrent, Rows},
};

/// A token and how it was read.
pub type Step = (u32, Phase);

/// Some tokens that follow each other, and what a text leaves behind that has read them and all before.
pub(super) struct Node {
    /// `None` in the root of an owner's tree.
    pub parent: Option<usize>,
    pub children: Vec<usize>,
    /// How many tokens come before.
    pub start: usize,
    pub steps: Vec<Step>,
    /// Their keys and values.
    pub rows: Option<Rows>,
    /// What else a text needs to go on after them. Not everywhere: where texts parted, nobody may have been at rest.
    pub end: Option<End>,
    /// Whether the folder has it as it is.
    pub is_saved: bool,
}

/// The state after a node's last token.
pub(super) struct End {
    pub recurrent: Recurrent,
    /// Logits `[vocab]`; empty if they were not computed.
    pub logits: Vec<f32>,
    /// When it was used last.
    pub used: u64,
}

impl Node {
    /// Returns the node before all tokens.
    pub fn root() -> Self {
        let (parent, children, steps) = (None, Vec::new(), Vec::new());
        Self { parent, children, start: 0, steps, rows: None, end: None, is_saved: true }
    }

    /// Returns how many tokens come before its end.
    pub fn stop(&self) -> usize {
        self.start + self.steps.len()
    }

    /// Returns the bytes that it takes.
    pub fn bytes(&self, c: &Config) -> usize {
        let end = self.end.as_ref().map_or(0, |end| Recurrent::bytes(c) + size_of_val(&end.logits[..]));
        size_of_val(&self.steps[..]) + self.rows.as_ref().map_or(0, |rows| rows.bytes(c)) + end
    }

    /// Splits off the first `count` steps: they become a node of their own, without an end, which is returned. Where this
    /// node belongs is for the caller.
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

/// Returns which of the steps were read as an answer.
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
