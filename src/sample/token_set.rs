//! Sets of tokens.

/// A set of token ids, as a bit set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// Sets the bits from `words`; the lowest bit of the first word is id 0.
    pub fn copy_from(&mut self, words: &[u32]) {
        self.words.clear();
        self.words.extend_from_slice(words);
    }

    /// Adds `id`.
    pub fn insert(&mut self, id: u32) {
        let word = id as usize / 32;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 32);
    }

    /// Removes `id`.
    pub fn remove(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word &= !(1 << (id % 32));
        }
    }

    /// Whether the set contains `id`.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Returns the ids, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().zip((0..).step_by(32)).flat_map(|(&word, base)| {
            let mut remaining = word;
            std::iter::from_fn(move || {
                let bit = (remaining != 0).then(|| remaining.trailing_zeros())?;
                remaining &= remaining - 1;
                Some(base + bit)
            })
        })
    }

    /// Returns the id, if there is exactly one.
    pub fn only(&self) -> Option<u32> {
        let mut ids = self.iter();
        ids.next().filter(|_| ids.next().is_none())
    }

    /// Returns the number of ids.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut set = Self::default();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_exactly_the_inserted_tokens() {
        let ids = [0, 1, 31, 32, 33, 1000];
        let mut set: TokenSet = ids.into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), ids);
        assert_eq!((set.len(), set.only(), set.is_empty()), (6, None, false));
        assert!(ids.iter().all(|&id| set.contains(id)) && !set.contains(2) && !set.contains(9999));
        ids[..5].iter().for_each(|&id| set.remove(id));
        set.remove(9999);
        assert_eq!(set.only(), Some(1000));
        set.copy_from(&[0, 0]);
        assert!(set.is_empty() && set.only().is_none());
    }
}
