//! Splits long texts without changing their tokens. The tokenizer library takes 140 bytes of memory per byte and cannot
//! be interrupted, so long texts are tokenized in parts.
//!
//! BPE only merges pairs into tokens of the vocabulary. If no token contains a certain pair of adjacent characters, no
//! merge crosses the boundary between them, and the merges on one side do not depend on the other side.

use std::{collections::HashSet, iter};

use crate::limits::UNDIVIDED;

/// Approximate size of a part in bytes, for some twenty milliseconds of work.
pub const PART: usize = 32 << 10;

/// The character pairs between which a text can be split.
pub struct SplitPoints {
    /// Pairs of characters that are adjacent in some token.
    adjacent: HashSet<(char, char)>,
    /// Characters that are tokens; others become bytes, or one unknown token for a run of them.
    tokens: HashSet<char>,
    /// First and last characters of added tokens, which are matched before everything else.
    first: HashSet<char>,
    last: HashSet<char>,
    /// Length of the longest token in bytes; `None` if bytes of a text may be dropped.
    longest: Option<usize>,
}

/// Returns a character as BPE sees it.
fn merged(c: char) -> char {
    if c == ' ' { '▁' } else { c }
}

impl SplitPoints {
    /// Returns the seams for a tokenizer with these tokens. `is_lossless`: each byte of a text is part of a token, or a
    /// byte token if there is one.
    pub fn new<'t>(
        vocabulary: impl Iterator<Item = &'t str>,
        added: impl Iterator<Item = &'t str>,
        is_lossless: bool,
    ) -> Self {
        let none = HashSet::new;
        let mut split_points =
            Self { adjacent: HashSet::new(), tokens: none(), first: none(), last: none(), longest: None };
        let (mut longest, mut bytes) = (1, 0);
        for token in vocabulary {
            let mut chars = token.chars().map(merged);
            longest = longest.max(token.len());
            bytes += usize::from(token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'));
            let Some(first) = chars.next() else { continue };
            let mut before = first;
            for c in chars {
                split_points.adjacent.insert((before, c));
                before = c;
            }
            if token.chars().nth(1).is_none() {
                split_points.tokens.insert(first);
            }
        }
        for token in added {
            longest = longest.max(token.len());
            let chars: Vec<char> = token.chars().map(merged).collect();
            split_points.adjacent.extend(chars.windows(2).map(|pair| (pair[0], pair[1])));
            split_points.first.extend(chars.first());
            split_points.last.extend(chars.last());
        }
        split_points.longest = (is_lossless && bytes == 256).then_some(longest);
        split_points
    }

    /// Whether a text can be split between `a` and `b`.
    fn between(&self, a: char, b: char) -> bool {
        let (a, b) = (merged(a), merged(b));
        self.tokens.contains(&a)
            && self.tokens.contains(&b)
            && !self.adjacent.contains(&(a, b))
            && !self.last.contains(&a)
            && !self.first.contains(&b)
    }

    /// Returns a lower bound for the number of tokens of `text`; 0 if there is none.
    pub fn least_tokens(&self, text: &str) -> usize {
        let spaces = text.bytes().filter(|&b| b == b' ').count(); // each becomes three bytes
        self.longest.map_or(0, |longest| (text.len() + 2 * spaces) / longest)
    }

    /// Splits `text` into parts of at least [`PART`] bytes.
    pub fn parts<'s>(&self, text: &'s str) -> impl Iterator<Item = &'s str> {
        let mut rest = text;
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (part, after) = rest.split_at(self.end_of_part(rest));
            rest = after;
            Some(part)
        })
    }

    fn end_of_part(&self, text: &str) -> usize {
        let start = (0..=PART.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let mut before = None;
        for (at, c) in text[start..].char_indices() {
            if before.is_some_and(|before| self.between(before, c)) {
                return start + at;
            }
            before = Some(c);
        }
        text.len()
    }
}

/// Fails if a part of `bytes` bytes, which grow by the factor `growth`, is too long. The error is to be appended to
/// "the text".
pub fn check_part(bytes: usize, growth: f64) -> Result<(), String> {
    let limit = (UNDIVIDED as f64 / growth) as usize;
    if bytes <= limit {
        return Ok(());
    }
    Err(format!("has {bytes} bytes that cannot be divided; the limit is {limit}; use a part of it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_points_never_divide_a_token() {
        let vocabulary = ["a", "b", "c", "▁", "ab", "▁a", "<x>"];
        let split_points = SplitPoints::new(vocabulary.into_iter(), ["<x>"].into_iter(), true);
        for (pair, divides) in [
            ("ba", true),
            ("b ", true),
            ("ab", false), // a token
            (" a", false), // a token after normalization
            ("bé", false), // é is not a token
            ("b<", false), // an added token may start
            (">a", false), // or end
            ("  ", true),
        ] {
            let [a, b]: [char; 2] = pair.chars().collect::<Vec<_>>().try_into().unwrap();
            assert_eq!(split_points.between(a, b), divides, "{pair:?}");
        }
        assert_eq!(split_points.least_tokens("abab"), 0, "bytes may be lost: there are no byte tokens");
    }

    #[test]
    fn parts_concatenate_to_the_text() {
        let split_points = SplitPoints::new(["a", "b", "ab"].into_iter(), [].into_iter(), true);
        for text in [String::new(), "ab".repeat(PART), "ab".repeat(PART / 2 - 1), "é".repeat(PART)] {
            let parts: Vec<_> = split_points.parts(&text).collect();
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.len() < PART + 5 || !text.starts_with('a')));
        }
        assert_eq!(split_points.parts(&"ab".repeat(PART)).count(), 2);
        assert!(check_part(UNDIVIDED / 4, 4.0).is_ok() && check_part(UNDIVIDED / 4 + 1, 4.0).is_err());
    }
}
