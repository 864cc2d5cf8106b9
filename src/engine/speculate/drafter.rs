//! Drafts for one sequence.

use super::{Acceptance, DraftSource, Guess, Index, Speculate};

/// Drafts the next tokens of a text and records how often they are accepted. It belongs to one text, or to the branches of
/// one conversation.
pub struct Drafter {
    index: Index,
    /// Sources with priority over the index.
    sources: Vec<Box<dyn DraftSource>>,
    /// The tokens of the text.
    text: Vec<u32>,
    /// The current draft.
    guesses: Vec<Guess>,
    acceptance: Acceptance,
}

impl Default for Drafter {
    fn default() -> Self {
        let (index, acceptance) = (Index::new(Index::TOKENS), Acceptance::default());
        Self { index, sources: Vec::new(), text: Vec::new(), guesses: Vec::new(), acceptance }
    }
}

impl Drafter {
    /// Adds a reference text. Must be called before any tokens are processed.
    pub fn add_text(&mut self, ids: &[u32]) {
        self.index.keep(ids);
    }

    /// Adds a source that takes precedence over the index.
    pub fn add_source(&mut self, source: Box<dyn DraftSource>) {
        self.sources.push(source);
    }

    /// Drops all texts except reference texts.
    pub fn clear(&mut self) {
        self.index.clear();
        self.text.clear();
        self.guesses.clear();
        self.acceptance = Acceptance::default();
    }

    /// Returns the size of its history in bytes.
    pub fn bytes(&self) -> usize {
        self.index.bytes() + 4 * self.text.capacity()
    }

    /// Replaces the text. An earlier, different continuation can still be drafted from.
    pub fn read(&mut self, text: &[u32]) {
        let mut common = self.text.len();
        if !text.starts_with(&self.text) {
            common = self.text.iter().zip(text).take_while(|(a, b)| a == b).count();
            self.index.start_text(&text[..common]);
            self.text.truncate(common);
        }
        text[common..].iter().for_each(|&id| self.push(id));
    }

    /// Appends a token to the text.
    pub fn push(&mut self, id: u32) {
        self.text.push(id);
        self.index.push(id);
    }

    /// Drafts the next tokens, taken from `first` if it has any.
    pub fn draft(&mut self, first: &dyn DraftSource) {
        self.guesses.clear();
        let index: &dyn DraftSource = &self.index;
        for source in [first].into_iter().chain(self.sources.iter().map(Box::as_ref)).chain([index]) {
            if self.guesses.is_empty() {
                source.guess(&self.text, Speculate::MAX, &mut self.guesses);
            }
        }
    }

    /// Returns the probability that the first token of the draft is accepted, the first two, and so on, at most `max`.
    pub fn chances(&self, max: usize) -> Vec<f64> {
        let mut all_right = 1.0;
        let chance = |guess: &Guess| {
            all_right *= self.acceptance.of(guess.class);
            all_right
        };
        self.guesses.iter().take(max).map(chance).collect()
    }

    /// Returns the first `count` tokens of the draft.
    pub fn ids(&self, count: usize) -> impl Iterator<Item = u32> {
        self.guesses.iter().take(count).map(|guess| guess.id)
    }

    /// Returns whether the draft token at `index` equals `chosen`, and records the result.
    pub fn check(&mut self, index: usize, chosen: u32) -> bool {
        let Some(guess) = self.guesses.get(index) else { return false };
        let is_right = guess.id == chosen;
        self.acceptance.record(guess.class, is_right);
        is_right
    }
}
