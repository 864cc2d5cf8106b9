//! Speculative decoding of a single sequence.

use std::time::{Duration, Instant};

use super::{DraftSource, Drafter, Policy, Speculate};
use crate::{Result, engine::token_model::TokenModel};

/// Token counts and timings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Processed tokens.
    pub tokens: usize,
    /// Forward passes.
    pub passes: usize,
    /// Draft tokens that were verified.
    pub drafted: usize,
    /// Draft tokens that were accepted.
    pub accepted: usize,
    /// Time spent on drafting.
    pub drafting: Duration,
}

impl Counts {
    /// Adds later counts.
    pub fn add(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.passes += more.passes;
        self.drafted += more.drafted;
        self.accepted += more.accepted;
        self.drafting += more.drafting;
    }
}

/// Drafts tokens and adapts to acceptance rates and pass times. It belongs to one text, or to the branches of one
/// conversation.
pub struct Speculator {
    drafter: Drafter,
    policy: Policy,
    clock: Box<Clock>,
}

/// Returns the time since a fixed moment.
type Clock = dyn Fn() -> Duration + Send;

impl Speculator {
    /// Returns a speculator without history.
    pub fn new(speculate: Speculate) -> Self {
        let start = Instant::now();
        let (drafter, policy) = (Drafter::default(), Policy::new(speculate));
        Self { drafter, policy, clock: Box::new(move || start.elapsed()) }
    }

    /// Replaces the clock, for simulations.
    pub fn set_clock(&mut self, clock: Box<Clock>) {
        self.clock = clock;
    }

    /// Adds a reference text. Must be called before any tokens are processed.
    pub fn add_text(&mut self, ids: &[u32]) {
        self.drafter.add_text(ids);
    }

    /// Adds a source that takes precedence over the index.
    pub fn add_source(&mut self, source: Box<dyn DraftSource>) {
        self.drafter.add_source(source);
    }

    /// Drops all texts except reference texts; measured costs are kept.
    pub fn clear(&mut self) {
        self.drafter.clear();
    }

    /// Returns the size of its history in bytes.
    pub fn bytes(&self) -> usize {
        self.drafter.bytes()
    }

    /// Records that `text` is now everything the model has processed. An earlier, different continuation can still be
    /// drafted from.
    pub fn read(&mut self, text: &[u32]) {
        if self.is_on() {
            self.drafter.read(text);
        }
    }

    /// Whether speculative decoding is enabled.
    pub fn is_on(&self) -> bool {
        self.policy.is_on()
    }

    /// Processes `id` and up to `max` draft tokens after it, taken from `first` if it has any. `choose` receives the
    /// logits after each processed token in order and returns the next token, or `None` to stop.
    pub fn advance(
        &mut self,
        model: &mut impl TokenModel,
        id: u32,
        max: usize,
        first: &dyn DraftSource,
        choose: &mut dyn FnMut(&[f32]) -> Result<Option<u32>>,
    ) -> Result<Counts> {
        let (depth, start) = (model.tokens(), (self.clock)());
        let mut ids = vec![id];
        if self.is_on() {
            self.drafter.push(id);
            self.drafter.draft(first);
            let chances = self.drafter.chances(max.min(model.max_guesses()));
            let drafted = self.policy.drafts(&[chances], depth)[0];
            ids.extend(self.drafter.ids(drafted));
        }
        let (drafted, drafting) = (ids.len() - 1, (self.clock)() - start);
        let mut counts = Counts { tokens: 0, passes: 1, drafted, accepted: 0, drafting };
        let (start, mut choosing) = ((self.clock)(), Duration::ZERO);
        let outcome = model.verify(&ids, &mut |logits| {
            let start = (self.clock)();
            let index = counts.tokens;
            counts.tokens += 1;
            let chosen = choose(logits)?;
            let is_right = chosen.is_some_and(|chosen| self.drafter.check(index, chosen)) && index < drafted;
            choosing += (self.clock)() - start;
            Ok(is_right)
        });
        let elapsed = ((self.clock)() - start).saturating_sub(choosing);
        counts.accepted = counts.tokens.saturating_sub(1);
        ids[1..counts.tokens.max(1)].iter().for_each(|&id| self.drafter.push(id));
        outcome?;
        self.policy.record([1, 1 + drafted], depth, elapsed);
        Ok(counts)
    }
}
