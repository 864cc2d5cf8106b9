//! Prompt lookup: finds earlier occurrences of the end of the text and drafts what followed them.

use super::{Class, DraftSource, Guess};

/// Separates texts; not a token id.
const BREAK: u32 = u32::MAX;
/// No earlier position.
const NONE: u32 = u32::MAX;
/// A position that is not indexed: it is already indexed in another text, or too close to the start of its text.
const UNLISTED: u32 = u32::MAX - 1;
/// Maximum length at which matches are compared.
const LONGEST: usize = 32;
/// Lengths of the indexed n-grams; the longest one that is found is used.
const ORDERS: [usize; 3] = [4, 2, 1];
/// Earlier positions examined per n-gram length, and the number of matches used.
const TRIES: usize = 48;
const CANDIDATES: usize = 16;

/// The positions of all n-grams of length `order`, by hash.
struct Positions {
    order: usize,
    /// The last position for each hash; its length is a power of two.
    last: Vec<u32>,
    /// For each position, the previous one with the same hash, or [`UNLISTED`].
    before: Vec<u32>,
}

impl Positions {
    fn new(order: usize) -> Self {
        Self { order, last: vec![NONE; 256], before: Vec::new() }
    }

    /// Returns the hash of the last n-gram; `None` if the text is too short.
    fn hash(&self, tokens: &[u32]) -> Option<usize> {
        let run = &tokens[tokens.len().checked_sub(self.order)?..];
        let mix = |hash: u64, &id: &u32| (hash ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        let hash = run.iter().fold(0, mix);
        (!run.contains(&BREAK)).then_some(hash as usize & (self.last.len() - 1))
    }

    /// Adds the last position of `tokens`; unless `listed`, it cannot be found.
    fn push(&mut self, tokens: &[u32], listed: bool) {
        if tokens.len() > self.last.len() {
            self.grow(&tokens[..tokens.len() - 1]);
        }
        let before = match self.hash(tokens).filter(|_| listed) {
            Some(hash) => std::mem::replace(&mut self.last[hash], (tokens.len() - 1) as u32),
            None => UNLISTED,
        };
        self.before.push(before);
    }

    /// Doubles the hash table.
    fn grow(&mut self, tokens: &[u32]) {
        let before = std::mem::take(&mut self.before);
        self.last = vec![NONE; 2 * self.last.len()];
        for (at, before) in before.into_iter().enumerate() {
            self.push(&tokens[..=at], before != UNLISTED);
        }
    }

    fn bytes(&self) -> usize {
        4 * (self.last.capacity() + self.before.capacity())
    }
}

/// An index of the text, its earlier versions, and reference texts. Drafts what followed the longest earlier occurrence
/// of the end of the text.
pub struct Index {
    /// All texts, each followed by [`BREAK`]; the current one is last.
    tokens: Vec<u32>,
    positions: [Positions; 3],
    /// Number of leading tokens to keep: the reference texts.
    kept: usize,
    /// Maximum number of tokens after them.
    max: usize,
}

impl Index {
    /// Default maximum number of tokens, in addition to reference texts.
    pub const TOKENS: usize = 1 << 16;

    /// Returns an empty index, which drops the oldest tokens beyond `max`.
    pub fn new(max: usize) -> Self {
        Self { tokens: Vec::new(), positions: ORDERS.map(Positions::new), kept: 0, max: max.max(4 * LONGEST) }
    }

    /// Adds a reference text, which is kept. Must be called before any tokens are pushed.
    pub fn keep(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| self.add(id, true));
        self.add(BREAK, false);
        self.kept = self.tokens.len();
    }

    /// Drops everything except the reference texts.
    pub fn clear(&mut self) {
        self.forget(self.tokens.len());
    }

    /// Adds the next token of the current text.
    pub fn push(&mut self, id: u32) {
        if self.tokens.len() >= self.kept + self.max {
            self.forget(self.tokens.len() - self.max / 2);
        }
        self.add(id, true);
    }

    /// Starts another text that continues after `before`. These tokens are already indexed as part of other texts.
    pub fn start_text(&mut self, before: &[u32]) {
        if self.tokens.last().is_some_and(|&last| last != BREAK) {
            self.add(BREAK, false);
        }
        let Some((&last, before)) = before.split_last() else { return };
        before[(before.len() + 1).saturating_sub(LONGEST)..].iter().for_each(|&id| self.add(id, false));
        self.add(last, true); // a different continuation follows here
    }

    /// Returns its size in bytes.
    pub fn bytes(&self) -> usize {
        4 * self.tokens.capacity() + self.positions.iter().map(Positions::bytes).sum::<usize>()
    }

    fn add(&mut self, id: u32, listed: bool) {
        self.tokens.push(id);
        self.positions.iter_mut().for_each(|positions| positions.push(&self.tokens, listed));
    }

    /// Drops the tokens before `first`, except reference texts.
    fn forget(&mut self, first: usize) {
        let tokens = std::mem::take(&mut self.tokens);
        // Every position that can be found is listed in the index of single tokens.
        let [.., single] = std::mem::replace(&mut self.positions, ORDERS.map(Positions::new));
        let stays = (0..self.kept).chain(first.max(self.kept)..tokens.len());
        stays.for_each(|at| self.add(tokens[at], single.before[at] != UNLISTED));
    }

    /// Returns the length of the common suffix of the tokens up to `at` and the whole text.
    fn common(&self, at: usize) -> usize {
        let (suffix, end) = (self.tokens[..=at].iter().rev(), self.tokens.iter().rev());
        suffix.zip(end).take(LONGEST).take_while(|(a, b)| a == b && **a != BREAK).count()
    }

    /// Returns the latest earlier positions that match the end of the text, and the length of each match.
    fn matches(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for positions in &self.positions {
            let Some(hash) = positions.hash(&self.tokens) else { continue };
            let mut at = positions.last[hash];
            for _ in 0..TRIES {
                if at >= UNLISTED || found.len() == CANDIDATES {
                    break;
                }
                if at as usize + 1 < self.tokens.len() {
                    let length = self.common(at as usize);
                    if length >= positions.order {
                        found.push((at as usize, length));
                    }
                }
                at = positions.before[at as usize];
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }
}

impl DraftSource for Index {
    /// Drafts a continuation of the current text. Among the longest matches, the most frequent next token wins, then
    /// the most recent one; the draft continues with the tokens after it.
    fn guess(&self, _text: &[u32], max: usize, guesses: &mut Vec<Guess>) {
        let mut matches = if max > 0 { self.matches() } else { Vec::new() };
        let (first, end) = (guesses.len(), self.tokens.len());
        for step in 0..max {
            // If the match overlaps the end of the text, the draft continues with its own tokens.
            let follower = |at: usize| match self.tokens.get(at + 1 + step) {
                Some(&id) => Some(id).filter(|&id| id != BREAK),
                None => guesses.get(first + at + 1 + step - end).map(|guess: &Guess| guess.id),
            };
            // One more match counts as much as one more token of length.
            let mut votes: Vec<(u32, u64, usize)> = Vec::with_capacity(matches.len());
            for &(at, length) in &matches {
                let Some(id) = follower(at) else { continue };
                match votes.iter_mut().find(|vote| vote.0 == id) {
                    Some(vote) => *vote = (id, vote.1 + (1 << length), vote.2.max(length)),
                    None => votes.push((id, 1 << length, length)),
                }
            }
            let all: u64 = votes.iter().map(|vote| vote.1).sum();
            let Some(&(id, weight, length)) = votes.iter().rev().max_by_key(|vote| vote.1) else { return };
            matches.retain(|&(at, _)| follower(at) == Some(id));
            guesses.push(Guess { id, class: Class::of_match(length + step, weight as f64 / all as f64) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(index: &Index, max: usize) -> Vec<u32> {
        let mut guesses = Vec::new();
        index.guess(&[], max, &mut guesses);
        guesses.iter().map(|guess| guess.id).collect()
    }

    fn index(ids: &[u32]) -> Index {
        let mut index = Index::new(Index::TOKENS);
        ids.iter().for_each(|&id| index.push(id));
        index
    }

    #[test]
    fn drafts_follow_the_longest_match() {
        assert!(guess(&index(&[]), 3).is_empty());
        assert!(guess(&index(&[1, 2, 3]), 3).is_empty(), "no earlier occurrence");
        let ids = [9, 1, 2, 3, 4, 50, 51, 8, 1, 2, 3, 4, 60, 61, 7, 2, 3, 4, 70, 71, 9, 1, 2, 3, 4];
        assert_eq!(guess(&index(&ids), 2), [50, 51], "five matching tokens, against four and three");
        assert_eq!(guess(&index(&[&ids[..7], &[2, 3, 4]].concat()), 9), [50, 51, 2, 3, 4, 50, 51, 2, 3]);
        assert_eq!(guess(&index(&[1, 2, 1, 3, 1, 3, 1]), 1), [3], "most often");
        assert_eq!(guess(&index(&[1, 2, 7, 1, 3, 8, 1]), 1), [3], "last");
        assert_eq!(guess(&index(&[5, 5]), 4), [5, 5, 5, 5], "a repetition continues");
    }

    #[test]
    fn guesses_carry_match_length_and_agreement() {
        let class = |ids: &[u32]| {
            let mut guesses = Vec::new();
            index(ids).guess(&[], 2, &mut guesses);
            guesses.iter().map(|guess| guess.class.matched().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(class(&[1, 2, 3, 4, 1, 2]), [(2, false), (3, false)]);
        assert_eq!(class(&[1, 2, 3, 5, 1, 2, 6, 7, 1, 2]), [(2, true), (3, false)], "two tokens followed");
    }

    #[test]
    fn new_texts_draft_from_shared_prefixes() {
        let mut index = index(&[1, 2, 3, 4, 5, 6]);
        index.start_text(&[1, 2, 3]);
        assert_eq!(guess(&index, 3), [4, 5, 6], "the undone continuation");
        [7, 8, 9].iter().for_each(|&id| index.push(id));
        index.start_text(&[1, 2, 3]);
        let mut guesses = Vec::new();
        index.guess(&[], 1, &mut guesses);
        assert_eq!(guesses[0].id, 7, "the last of two versions");
        index.push(4);
        assert_eq!(guess(&index, 2), [5, 6]);
        index.start_text(&[]);
        assert!(guess(&index, 2).is_empty());
        index.push(6);
        assert!(guess(&index, 2).is_empty(), "drafts do not cross texts");
    }

    #[test]
    fn reference_texts_are_never_dropped() {
        let mut index = Index::new(0);
        index.keep(&[1, 2, 3]);
        index.keep(&[4, 5]);
        for id in 100..10_000 {
            index.push(id);
        }
        assert!(index.tokens.len() <= index.kept + index.max);
        index.push(1);
        assert_eq!(guess(&index, 9), [2, 3]);
        index.push(9_990);
        assert_eq!(guess(&index, 2), [9_991, 9_992], "recent tokens are kept");
        index.push(101);
        assert!(guess(&index, 2).is_empty(), "old tokens are dropped");
        index.clear();
        index.push(9_990);
        assert!(guess(&index, 2).is_empty());
        index.push(4);
        assert_eq!(guess(&index, 2), [5]);
    }

    #[test]
    fn memory_and_matches_are_bounded() {
        let mut index = Index::new(Index::TOKENS);
        (0..8192).for_each(|i| index.push(i * i % 977));
        assert!(index.bytes() < 1_000_000, "{} bytes", index.bytes());
        // In a text of one repeated token every position matches.
        (0..8192).for_each(|_| index.push(1));
        assert_eq!(index.matches().len(), CANDIDATES);
        (0..5 * Index::TOKENS as u32).for_each(|i| index.push(i % 5003));
        assert!(index.bytes() < 10_000_000, "{} bytes", index.bytes());
    }

    /// The drafts agree with a brute-force search of the whole text.
    #[test]
    fn matches_agree_with_brute_force_search() {
        let (mut index, mut ids, mut state) = (Index::new(Index::TOKENS), Vec::new(), 7u64);
        for _ in 0..3000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (state >> 60) as u32 / 3;
            ids.push(id);
            index.push(id);
            let end = ids.len();
            let common = |at: usize| (0..=at).take(LONGEST).take_while(|i| ids[at - i] == ids[end - 1 - i]).count();
            let longest = (0..end - 1).map(common).max().unwrap_or(0);
            let mut found = Vec::new();
            index.guess(&[], 1, &mut found);
            assert_eq!(found.is_empty(), longest == 0);
            // If few positions share an n-gram, the longest match is among them.
            let few = ORDERS.iter().find(|&&order| longest >= order);
            let positions = (0..end - 1).filter(|&at| few.is_some_and(|&order| common(at) >= order)).count();
            if let (Some(guess), true) = (found.first(), positions <= CANDIDATES && positions > 0) {
                let class = Class::of_match(longest, 1.0).matched().unwrap().0;
                assert!(guess.class.matched().unwrap().0 <= class);
                let votes = |id| {
                    let positions = (0..end - 1).filter(|&at| ids[at + 1] == id).map(common);
                    positions.filter(|&length| length >= *few.unwrap()).map(|length| 1u64 << length).sum::<u64>()
                };
                assert!((0..6).all(|other| votes(other) <= votes(guess.id)), "at {end}");
            }
        }
    }
}
