//! Remembers the token ids of answers. Clients send back only the text, and a text can be tokenized in more ways than
//! the one in which it was generated.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

/// Maximum number of ids stored; the oldest are dropped.
const IDS: usize = 2 << 20;
/// Answers stored per prompt.
const PER_PROMPT: usize = 8;

/// Answers by prompt.
#[derive(Default)]
pub struct Answers {
    entry: Mutex<Memory>,
}

/// A prompt and its answers.
#[derive(Clone)]
pub struct Entry {
    /// Length of the prompt's text in bytes.
    pub bytes: usize,
    /// Its token ids.
    pub prompt: Arc<[u32]>,
    /// Its answers, oldest first.
    pub answers: Vec<Arc<Answer>>,
}

/// An answer.
pub struct Answer {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Whether it starts with the white space that the template puts before a reply.
    pub indented: bool,
}

#[derive(Default)]
struct Memory {
    /// Prompts, and when they were last used, by the hash of owner and text.
    prompts: HashMap<blake3::Hash, (Entry, u64)>,
    /// The same in order of last use.
    order: BTreeMap<u64, blake3::Hash>,
    /// Number of prompts by text length in bytes.
    lengths: BTreeMap<usize, usize>,
    clock: u64,
    ids: usize,
}

impl Answers {
    /// Stores an answer to a prompt of `owner` with the given text and ids.
    pub fn remember(&self, owner: &str, text: &str, prompt: &[u32], answer: Answer) {
        let key = owner_hasher(owner).update(text.as_bytes()).finalize();
        let mut memory = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = memory.prompts.get(&key).map(|(entry, _)| entry.clone()).filter(|entry| *entry.prompt == *prompt);
        let mut entry =
            entry.unwrap_or_else(|| Entry { bytes: text.len(), prompt: prompt.into(), answers: Vec::new() });
        entry.answers.retain(|other| other.ids != answer.ids);
        if entry.answers.len() >= PER_PROMPT {
            entry.answers.remove(0);
        }
        entry.answers.push(Arc::new(answer));
        memory.remove(&key);
        memory.insert(key, entry);
        while memory.ids > IDS {
            let Some(&oldest) = memory.order.values().next() else { break };
            memory.remove(&oldest);
        }
    }

    /// Returns their approximate size in bytes.
    pub fn bytes(&self) -> usize {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).ids * size_of::<u32>()
    }

    /// Returns the longest prompt of `owner` that `text` starts with.
    pub fn find(&self, owner: &str, text: &str) -> Option<Entry> {
        let mut memory = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut hasher, mut hashed, mut found) = (owner_hasher(owner), 0, None);
        for &bytes in memory.lengths.range(..=text.len()).map(|(bytes, _)| bytes) {
            hasher.update(&text.as_bytes()[hashed..bytes]);
            hashed = bytes;
            let key = hasher.finalize();
            if memory.prompts.contains_key(&key) && text.is_char_boundary(bytes) {
                found = Some(key);
            }
        }
        let entry = memory.remove(&found?)?;
        memory.insert(found?, entry.clone());
        Some(entry)
    }
}

/// Returns a hasher for a text of `owner`.
fn owner_hasher(owner: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(blake3::hash(owner.as_bytes()).as_bytes());
    hasher
}

impl Memory {
    fn insert(&mut self, key: blake3::Hash, entry: Entry) {
        self.clock += 1;
        self.ids += entry.size();
        *self.lengths.entry(entry.bytes).or_default() += 1;
        self.order.insert(self.clock, key);
        self.prompts.insert(key, (entry, self.clock));
    }

    fn remove(&mut self, key: &blake3::Hash) -> Option<Entry> {
        let (entry, used) = self.prompts.remove(key)?;
        self.order.remove(&used);
        self.ids -= entry.size();
        if let Some(count) = self.lengths.get_mut(&entry.bytes) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&entry.bytes);
            }
        }
        Some(entry)
    }
}

impl Entry {
    /// Returns the approximate size in units of token ids.
    fn size(&self) -> usize {
        const OVERHEAD: usize = 64;
        OVERHEAD + self.prompt.len() + self.answers.iter().map(|answer| answer.ids.len() + OVERHEAD).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ids: &[u32]) -> Answer {
        Answer { ids: ids.into(), indented: false }
    }

    #[test]
    fn the_longest_prompt_is_found_and_only_by_its_owner() {
        let answers = Answers::default();
        answers.remember("a", "one", &[1], answer(&[2]));
        answers.remember("a", "one two", &[1, 2], answer(&[3]));
        answers.remember("a", "one two", &[1, 2], answer(&[4]));
        answers.remember("b", "one two three", &[9], answer(&[9]));
        let found = answers.find("a", "one two three").unwrap();
        assert_eq!((found.bytes, &*found.prompt), (7, &[1, 2][..]));
        assert_eq!(found.answers.iter().map(|answer| answer.ids[0]).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(&*answers.find("a", "one tw").unwrap().prompt, [1]);
        assert!(answers.find("a", "on").is_none() && answers.find("", "one").is_none());
    }

    #[test]
    fn oldest_answers_are_evicted() {
        let answers = Answers::default();
        let long = vec![7; IDS / 4];
        for text in ["a", "b", "c", "d"] {
            answers.remember("", text, &long, answer(&[]));
            assert!(answers.find("", "a").is_some());
        }
        assert!(answers.find("", "b").is_none() && answers.find("", "d").is_some());
        let memory = answers.entry.lock().unwrap();
        assert!(memory.ids <= IDS && memory.lengths[&1] == memory.prompts.len());
    }
}
