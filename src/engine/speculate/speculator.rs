//! The draft policy: how many draft tokens to verify in the next pass.

use std::time::{Duration, Instant};

use super::{Acceptance, Costs, DraftSource, Guess, Index};
use crate::{Result, engine::token_model::TokenModel, forward::DECODE_TOKENS};

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// The number that is expected to be fastest, from measured pass times and acceptance rates.
    #[default]
    Auto,
    /// None.
    Off,
    /// This many, whenever a draft is available.
    Fixed(usize),
}

impl Speculate {
    /// Maximum draft tokens per pass.
    pub const MOST: usize = DECODE_TOKENS - 1;
}

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

/// Minimum expected speedup to draft at all, since estimates are inexact.
const GAIN: f64 = 1.02;
/// Passes with drafts after which a single step is measured again, since the speed of the machine may have changed.
const SINGLE: usize = 64;
/// Single steps measured before anything is drafted.
const FIRST: usize = 2;

/// Drafts tokens and adapts to acceptance rates and pass times. It belongs to one text, or to the branches of one
/// conversation.
pub struct Speculator {
    speculate: Speculate,
    index: Index,
    /// Sources with priority over the index.
    sources: Vec<Box<dyn DraftSource>>,
    /// The processed tokens.
    text: Vec<u32>,
    /// The current draft.
    guesses: Vec<Guess>,
    acceptance: Acceptance,
    costs: Costs,
    /// Number of passes with a draft.
    drafts: usize,
    /// Number of passes with a draft since the last one without.
    since_single: usize,
    /// Number of passes without a draft.
    singles: usize,
    clock: Box<Clock>,
}

/// Returns the time since a fixed moment.
type Clock = dyn Fn() -> Duration + Send;

impl Speculator {
    /// Returns a speculator without history.
    pub fn new(speculate: Speculate) -> Self {
        let start = Instant::now();
        Self {
            speculate,
            index: Index::new(Index::TOKENS),
            sources: Vec::new(),
            text: Vec::new(),
            guesses: Vec::new(),
            acceptance: Acceptance::default(),
            costs: Costs::default(),
            drafts: 0,
            since_single: 0,
            singles: 0,
            clock: Box::new(move || start.elapsed()),
        }
    }

    /// Replaces the clock, for simulations.
    pub fn set_clock(&mut self, clock: Box<Clock>) {
        self.clock = clock;
    }

    /// Adds a reference text. Must be called before any tokens are processed.
    pub fn add_text(&mut self, ids: &[u32]) {
        self.index.keep(ids);
    }

    /// Adds a source that takes precedence over the index.
    pub fn add_source(&mut self, source: Box<dyn DraftSource>) {
        self.sources.push(source);
    }

    /// Drops all texts except reference texts; measured costs are kept.
    pub fn clear(&mut self) {
        self.index.clear();
        self.text.clear();
        self.acceptance = Acceptance::default();
    }

    /// Returns the size of its history in bytes.
    pub fn bytes(&self) -> usize {
        self.index.bytes() + 4 * self.text.capacity()
    }

    /// Returns the costs of passes.
    pub fn costs(&mut self) -> &mut Costs {
        &mut self.costs
    }

    /// Records that `text` is now everything the model has processed. An earlier, different continuation can still be
    /// drafted from.
    pub fn read(&mut self, text: &[u32]) {
        if !self.is_on() {
            return;
        }
        let common = self.text.iter().zip(text).take_while(|(a, b)| a == b).count();
        if common < self.text.len() {
            self.index.begin(&text[..common]);
            self.text.truncate(common);
        }
        text[common..].iter().for_each(|&id| self.push(id));
    }

    fn push(&mut self, id: u32) {
        self.text.push(id);
        self.index.push(id);
    }

    /// Whether speculative decoding is enabled.
    pub fn is_on(&self) -> bool {
        self.speculate != Speculate::Off
    }

    /// Processes `id` and up to `most` draft tokens after it, taken from `first` if it has any. `choose` receives the
    /// logits after each processed token in order and returns the next token, or `None` to stop.
    pub fn advance(
        &mut self,
        model: &mut impl TokenModel,
        id: u32,
        most: usize,
        first: &dyn DraftSource,
        choose: &mut dyn FnMut(&[f32]) -> Result<Option<u32>>,
    ) -> Result<Counts> {
        let (depth, start) = (model.tokens(), (self.clock)());
        let most = most.min(model.most_guesses());
        let drafted = self.draft(id, depth, most, first);
        let ids: Vec<u32> = [id].into_iter().chain(self.guesses[..drafted].iter().map(|guess| guess.id)).collect();
        let drafting = (self.clock)() - start;
        let mut counts = Counts { tokens: 0, passes: 1, drafted, accepted: 0, drafting };
        let (start, mut choosing) = ((self.clock)(), Duration::ZERO);
        let outcome = model.verify(&ids, &mut |logits| {
            let start = (self.clock)();
            let place = counts.tokens;
            counts.tokens += 1;
            let chosen = choose(logits)?;
            let is_right = chosen.is_some_and(|chosen| self.check(place, chosen)) && place < drafted;
            choosing += (self.clock)() - start;
            Ok(is_right)
        });
        let elapsed = ((self.clock)() - start).saturating_sub(choosing);
        counts.accepted = counts.tokens.saturating_sub(1);
        ids[1..counts.tokens.max(1)].iter().for_each(|&id| self.push(id));
        outcome?;
        self.record(1 + drafted, depth, elapsed);
        Ok(counts)
    }

    /// Records `id`, drafts its continuation and returns the number of draft tokens to verify with it.
    fn draft(&mut self, id: u32, depth: usize, most: usize, first: &dyn DraftSource) -> usize {
        self.guesses.clear();
        if !self.is_on() {
            return 0;
        }
        self.push(id);
        let index: &dyn DraftSource = &self.index;
        for source in [first].into_iter().chain(self.sources.iter().map(Box::as_ref)).chain([index]) {
            if self.guesses.is_empty() {
                source.guess(&self.text, Speculate::MOST, &mut self.guesses);
            }
        }
        let most = most.min(self.guesses.len());
        match self.speculate {
            Speculate::Off => 0,
            Speculate::Fixed(guesses) => guesses.min(most),
            Speculate::Auto if self.singles < FIRST || self.since_single >= SINGLE => 0,
            Speculate::Auto => self.worthwhile(depth, most.min(self.costs.most_tokens(depth).saturating_sub(1))),
        }
    }

    /// Returns the number of draft tokens, at most `most`, with the highest expected speed.
    fn worthwhile(&self, depth: usize, most: usize) -> usize {
        let (mut best, mut fastest) = (0, GAIN);
        let (mut all_right, mut expected) = (1.0, 1.0);
        for (guess, drafted) in self.guesses[..most].iter().zip(1..) {
            all_right *= self.acceptance.of(guess.class);
            expected += all_right;
            let speed = expected / self.costs.ratio(1 + drafted, depth);
            if speed > fastest {
                (best, fastest) = (drafted, speed);
            }
        }
        best
    }

    /// Returns whether the draft token at `place` equals `chosen`, and records the result.
    fn check(&mut self, place: usize, chosen: u32) -> bool {
        let Some(guess) = self.guesses.get(place) else { return false };
        let is_right = guess.id == chosen;
        self.acceptance.record(guess.class, is_right);
        is_right
    }

    /// Records the time of a pass.
    fn record(&mut self, tokens: usize, depth: usize, elapsed: Duration) {
        if tokens == 1 {
            (self.singles, self.since_single) = (self.singles + 1, 0);
        } else {
            (self.drafts, self.since_single) = (self.drafts + 1, self.since_single + 1);
        }
        // The first pass with a draft also allocates memory.
        if tokens == 1 || self.drafts > 1 {
            self.costs.record(tokens, depth, elapsed);
        }
    }
}
