//! Compact string arrays. A tokenizer has a hundred thousand short strings; separate allocations would take longer and
//! several times the memory.

/// Strings in one buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// Adds one.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    /// Returns their number.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns string `i`.
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)?;
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// Returns all of them in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Self::default();
        strings.into_iter().for_each(|s| all.push(s.as_ref()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::Strings;

    #[test]
    fn strings_round_trip() {
        let want = ["", "▁the", "", "a\nb", ""];
        let all: Strings = want.into_iter().collect();
        assert_eq!(all.iter().collect::<Vec<_>>(), want);
        assert_eq!((all.len(), all.get(1), all.get(5)), (5, Some("▁the"), None));
        assert!(!all.is_empty() && Strings::default().is_empty());
    }
}
