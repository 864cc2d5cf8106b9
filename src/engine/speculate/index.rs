//! Where the end of a text has occurred before, and what followed there.

use super::{Class, DraftSource, Guess};

/// Stands between texts; no id of a token.
const BREAK: u32 = u32::MAX;
/// No earlier place.
const NONE: u32 = u32::MAX;
/// A place that can't be found: it stands in another text already, or too near its beginning.
const UNLISTED: u32 = u32::MAX - 1;
/// Matches are not told apart beyond this length.
const LONGEST: usize = 32;
/// Numbers of tokens whose places are listed; the first that was found counts.
const ORDERS: [usize; 3] = [4, 2, 1];
/// Earlier places that are looked at for an order, and those of them that are taken.
const TRIES: usize = 48;
const CANDIDATES: usize = 16;

/// The places of all runs of `order` tokens, by a hash of these.
struct Places {
    order: usize,
    /// The last place with each hash; as many as a power of two.
    last: Vec<u32>,
    /// For each place, the one before with the same hash, or [`UNLISTED`].
    before: Vec<u32>,
}

impl Places {
    fn new(order: usize) -> Self {
        Self { order, last: vec![NONE; 256], before: Vec::new() }
    }

    /// Returns a hash of the last tokens; `None` if a text has too few.
    fn hash(&self, tokens: &[u32]) -> Option<usize> {
        let run = &tokens[tokens.len().checked_sub(self.order)?..];
        let mix = |hash: u64, &id: &u32| (hash ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        let hash = run.iter().fold(0, mix);
        (!run.contains(&BREAK)).then_some(hash as usize & (self.last.len() - 1))
    }

    /// Adds the last place of `tokens`; unless `listed` it will not be found.
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

    /// Makes room for twice as many.
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

/// Everything that a text and its earlier versions have said, and other texts to copy from. Guesses what comes next from
/// where the longest end of the text occurred before.
pub struct Index {
    /// All texts, with a [`BREAK`] after each; the present one is the last.
    tokens: Vec<u32>,
    places: [Places; 3],
    /// Tokens at the beginning that stay: of texts to copy from.
    kept: usize,
    /// Tokens after them at most.
    most: usize,
}

impl Index {
    /// Tokens of texts at most, beside those that are kept.
    pub const TOKENS: usize = 1 << 16;

    /// Returns an empty index, which forgets the oldest of more than `most` tokens.
    pub fn new(most: usize) -> Self {
        Self { tokens: Vec::new(), places: ORDERS.map(Places::new), kept: 0, most: most.max(4 * LONGEST) }
    }

    /// Adds a text to copy from, which stays. To be called before anything else is pushed.
    pub fn keep(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| self.add(id, true));
        self.add(BREAK, false);
        self.kept = self.tokens.len();
    }

    /// Forgets all but the texts that are kept.
    pub fn clear(&mut self) {
        self.forget(self.tokens.len());
    }

    /// Adds the next token of the present text.
    pub fn push(&mut self, id: u32) {
        if self.tokens.len() >= self.kept + self.most {
            self.forget(self.tokens.len() - self.most / 2);
        }
        self.add(id, true);
    }

    /// Begins another text, which goes on after `before`: as a part of other texts these tokens are in the index already.
    pub fn begin(&mut self, before: &[u32]) {
        if self.tokens.last().is_some_and(|&last| last != BREAK) {
            self.add(BREAK, false);
        }
        let Some((&last, before)) = before.split_last() else { return };
        before[(before.len() + 1).saturating_sub(LONGEST)..].iter().for_each(|&id| self.add(id, false));
        self.add(last, true); // something else follows it here
    }

    /// Returns the bytes that it takes.
    pub fn bytes(&self) -> usize {
        4 * self.tokens.capacity() + self.places.iter().map(Places::bytes).sum::<usize>()
    }

    fn add(&mut self, id: u32, listed: bool) {
        self.tokens.push(id);
        self.places.iter_mut().for_each(|places| places.push(&self.tokens, listed));
    }

    /// Forgets everything before `first` that is not kept.
    fn forget(&mut self, first: usize) {
        let tokens = std::mem::take(&mut self.tokens);
        // Every token that can be found is listed as a run of one.
        let [.., single] = std::mem::replace(&mut self.places, ORDERS.map(Places::new));
        let stays = (0..self.kept).chain(first.max(self.kept)..tokens.len());
        stays.for_each(|at| self.add(tokens[at], single.before[at] != UNLISTED));
    }

    /// Returns how many tokens are the same up to the place `at` and at the end.
    fn common(&self, at: usize) -> usize {
        let (here, end) = (self.tokens[..=at].iter().rev(), self.tokens.iter().rev());
        here.zip(end).take(LONGEST).take_while(|(a, b)| a == b && **a != BREAK).count()
    }

    /// Returns the last places where the end of the text occurred before, and for how many tokens.
    fn matches(&self) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for places in &self.places {
            let Some(hash) = places.hash(&self.tokens) else { continue };
            let mut at = places.last[hash];
            for _ in 0..TRIES {
                if at >= UNLISTED || found.len() == CANDIDATES {
                    break;
                }
                if at as usize + 1 < self.tokens.len() {
                    let length = self.common(at as usize);
                    if length >= places.order {
                        found.push((at as usize, length));
                    }
                }
                at = places.before[at as usize];
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }
}

impl DraftSource for Index {
    /// `text` is the present one. What followed the longest match comes first, what followed most of the equally long ones
    /// among these, and what was said last among equals; then what followed that.
    fn guess(&self, _text: &[u32], most: usize, guesses: &mut Vec<Guess>) {
        let mut matches = if most > 0 { self.matches() } else { Vec::new() };
        let (first, end) = (guesses.len(), self.tokens.len());
        for step in 0..most {
            // A text that repeats itself is copied from the guesses.
            let follower = |at: usize| match self.tokens.get(at + 1 + step) {
                Some(&id) => Some(id).filter(|&id| id != BREAK),
                None => guesses.get(first + at + 1 + step - end).map(|guess: &Guess| guess.id),
            };
            // One match more tells as much as one token more.
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

    fn guess(index: &Index, most: usize) -> Vec<u32> {
        let mut guesses = Vec::new();
        index.guess(&[], most, &mut guesses);
        guesses.iter().map(|guess| guess.id).collect()
    }

    fn index(ids: &[u32]) -> Index {
        let mut index = Index::new(Index::TOKENS);
        ids.iter().for_each(|&id| index.push(id));
        index
    }

    #[test]
    fn goes_on_as_after_the_longest_match() {
        assert!(guess(&index(&[]), 3).is_empty());
        assert!(guess(&index(&[1, 2, 3]), 3).is_empty(), "nothing occurred before");
        let ids = [9, 1, 2, 3, 4, 50, 51, 8, 1, 2, 3, 4, 60, 61, 7, 2, 3, 4, 70, 71, 9, 1, 2, 3, 4];
        assert_eq!(guess(&index(&ids), 2), [50, 51], "five tokens are the same there, four and three elsewhere");
        assert_eq!(guess(&index(&[&ids[..7], &[2, 3, 4]].concat()), 9), [50, 51, 2, 3, 4, 50, 51, 2, 3]);
        assert_eq!(guess(&index(&[1, 2, 1, 3, 1, 3, 1]), 1), [3], "most often");
        assert_eq!(guess(&index(&[1, 2, 7, 1, 3, 8, 1]), 1), [3], "last");
        assert_eq!(guess(&index(&[5, 5]), 4), [5, 5, 5, 5], "a text that repeats itself goes on");
    }

    #[test]
    fn tells_how_much_a_guess_is_worth() {
        let class = |ids: &[u32]| {
            let mut guesses = Vec::new();
            index(ids).guess(&[], 2, &mut guesses);
            guesses.iter().map(|guess| guess.class.matched().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(class(&[1, 2, 3, 4, 1, 2]), [(2, false), (3, false)]);
        assert_eq!(class(&[1, 2, 3, 5, 1, 2, 6, 7, 1, 2]), [(2, true), (3, false)], "two tokens followed");
    }

    #[test]
    fn another_text_goes_on_from_what_it_shares() {
        let mut index = index(&[1, 2, 3, 4, 5, 6]);
        index.begin(&[1, 2, 3]);
        assert_eq!(guess(&index, 3), [4, 5, 6], "what was taken back");
        [7, 8, 9].iter().for_each(|&id| index.push(id));
        index.begin(&[1, 2, 3]);
        let mut guesses = Vec::new();
        index.guess(&[], 1, &mut guesses);
        assert_eq!(guesses[0].id, 7, "the last of two versions");
        index.push(4);
        assert_eq!(guess(&index, 2), [5, 6]);
        index.begin(&[]);
        assert!(guess(&index, 2).is_empty());
        index.push(6);
        assert!(guess(&index, 2).is_empty(), "no text goes on in the next one");
    }

    #[test]
    fn texts_to_copy_from_stay() {
        let mut index = Index::new(0);
        index.keep(&[1, 2, 3]);
        index.keep(&[4, 5]);
        for id in 100..10_000 {
            index.push(id);
        }
        assert!(index.tokens.len() <= index.kept + index.most);
        index.push(1);
        assert_eq!(guess(&index, 9), [2, 3]);
        index.push(9_990);
        assert_eq!(guess(&index, 2), [9_991, 9_992], "the newest of the others is there");
        index.push(101);
        assert!(guess(&index, 2).is_empty(), "the oldest is not");
        index.clear();
        index.push(9_990);
        assert!(guess(&index, 2).is_empty());
        index.push(4);
        assert_eq!(guess(&index, 2), [5]);
    }

    #[test]
    fn takes_little_memory_and_little_work() {
        let mut index = Index::new(Index::TOKENS);
        (0..8192).for_each(|i| index.push(i * i % 977));
        assert!(index.bytes() < 1_000_000, "{} bytes", index.bytes());
        // A text of one token has the most places to look at.
        (0..8192).for_each(|_| index.push(1));
        assert_eq!(index.matches().len(), CANDIDATES);
        (0..5 * Index::TOKENS as u32).for_each(|i| index.push(i % 5003));
        assert!(index.bytes() < 10_000_000, "{} bytes", index.bytes());
    }

    /// The guesses are what a plain search over all that was said finds.
    #[test]
    fn finds_what_a_plain_search_finds() {
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
            // Where few places share an order, the longest match is among them.
            let few = ORDERS.iter().find(|&&order| longest >= order);
            let places = (0..end - 1).filter(|&at| few.is_some_and(|&order| common(at) >= order)).count();
            if let (Some(guess), true) = (found.first(), places <= CANDIDATES && places > 0) {
                let class = Class::of_match(longest, 1.0).matched().unwrap().0;
                assert!(guess.class.matched().unwrap().0 <= class);
                let votes = |id| {
                    let places = (0..end - 1).filter(|&at| ids[at + 1] == id).map(common);
                    places.filter(|&length| length >= *few.unwrap()).map(|length| 1u64 << length).sum::<u64>()
                };
                assert!((0..6).all(|other| votes(other) <= votes(guess.id)), "at {end}");
            }
        }
    }
}
