//! How many guesses are worth a place in the next pass.

use std::time::{Duration, Instant};

use super::{Acceptance, Costs, DraftSource, Guess, Index};
use crate::{Result, engine::token_model::TokenModel, forward::DECODE_TOKENS};

/// How many guesses are read with a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// As many as make the text come faster, by what passes cost here and how often such guesses were right.
    #[default]
    Auto,
    /// None.
    Off,
    /// So many, wherever there are any.
    Fixed(usize),
}

impl Speculate {
    /// Guesses in a pass at most.
    pub const MOST: usize = DECODE_TOKENS - 1;
}

/// What was read, and with how much work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that were read.
    pub tokens: usize,
    /// Passes over the weights.
    pub passes: usize,
    /// Guesses that were read with them.
    pub drafted: usize,
    /// Those of the guesses that were right.
    pub accepted: usize,
    /// Time to find guesses and to choose among them.
    pub drafting: Duration,
}

impl Counts {
    /// Adds what was read later.
    pub fn add(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.passes += more.passes;
        self.drafted += more.drafted;
        self.accepted += more.accepted;
        self.drafting += more.drafting;
    }
}

/// Draft only where that makes the text come faster by this factor: what is expected is not exact.
const GAIN: f64 = 1.02;
/// A single step is measured again after so many passes with drafts: the machine may have become faster or slower.
const SINGLE: usize = 64;
/// Single steps to measure before anything is drafted.
const FIRST: usize = 2;

/// Guesses what a text says next, and learns how often that is right and what it costs. It belongs to one text, or to the
/// branches of one conversation.
pub struct Speculator {
    speculate: Speculate,
    index: Index,
    /// Asked before the index.
    sources: Vec<Box<dyn DraftSource>>,
    /// The tokens that the model has read.
    text: Vec<u32>,
    /// What follows them, by the last search.
    guesses: Vec<Guess>,
    acceptance: Acceptance,
    costs: Costs,
    /// Passes with a draft.
    drafts: usize,
    /// Passes with a draft since the last one without.
    since_single: usize,
    /// Passes without a draft.
    singles: usize,
    clock: Box<Clock>,
}

/// Tells the time since some moment.
type Clock = dyn Fn() -> Duration + Send;

impl Speculator {
    /// Returns one that has seen nothing yet.
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

    /// Takes the time from `clock`: passes may be measured in another way, or not be real.
    pub fn set_clock(&mut self, clock: Box<Clock>) {
        self.clock = clock;
    }

    /// Adds a text to copy from. To be called before anything is read.
    pub fn add_text(&mut self, ids: &[u32]) {
        self.index.keep(ids);
    }

    /// Takes guesses from `source` where it has any, before those of earlier texts.
    pub fn add_source(&mut self, source: Box<dyn DraftSource>) {
        self.sources.push(source);
    }

    /// Forgets all texts but those to copy from; what passes cost is still known.
    pub fn clear(&mut self) {
        self.index.clear();
        self.text.clear();
        self.acceptance = Acceptance::default();
    }

    /// Returns the bytes of what it has seen.
    pub fn bytes(&self) -> usize {
        self.index.bytes() + 4 * self.text.capacity()
    }

    /// What passes cost.
    pub fn costs(&mut self) -> &mut Costs {
        &mut self.costs
    }

    /// Notes that the model has read `text`, all of it: what went on otherwise before was taken back, and can still be copied.
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

    /// Whether tokens are guessed at all.
    pub fn is_on(&self) -> bool {
        self.speculate != Speculate::Off
    }

    /// Reads `id`, and guesses of the tokens after it, `most` at most: those of `first`, if it has any. `choose` gets the logits after each token that was
    /// read, in the order of the text, and returns the token that follows; `None` if it is not to be read.
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

    /// Notes that the model reads `id`, finds guesses of what comes next, and returns how many of them to read with it.
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

    /// Returns with how many guesses, at most `most`, the text comes fastest.
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

    /// Returns whether `chosen` is what was guessed at this place, and learns from it.
    fn check(&mut self, place: usize, chosen: u32) -> bool {
        let Some(guess) = self.guesses.get(place) else { return false };
        let is_right = guess.id == chosen;
        self.acceptance.record(guess.class, is_right);
        is_right
    }

    /// Takes into account what a pass took.
    fn record(&mut self, tokens: usize, depth: usize, elapsed: Duration) {
        if tokens == 1 {
            (self.singles, self.since_single) = (self.singles + 1, 0);
        } else {
            (self.drafts, self.since_single) = (self.drafts + 1, self.since_single + 1);
        }
        // The first pass with a draft makes room for it.
        if tokens == 1 || self.drafts > 1 {
            self.costs.record(tokens, depth, elapsed);
        }
    }
}
