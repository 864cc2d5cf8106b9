//! Sources of draft tokens.

/// A draft token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The token id.
    pub id: u32,
    /// The class that determines its expected acceptance rate.
    pub class: Class,
}

/// Classes of draft tokens with similar acceptance rates: tokens that a constraint forces, or matches by length and by
/// whether all of them agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

/// Shortest match length of each class.
const LENGTHS: [usize; 10] = [1, 2, 3, 4, 5, 7, 10, 14, 20, 28];

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 1 + 2 * LENGTHS.len();
    /// Tokens forced by a constraint.
    pub const FORCED: Self = Self(0);

    /// Returns the class of a token that follows a match of `length` tokens; `share` is the share of matches that agree
    /// on it.
    pub fn of_match(length: usize, share: f64) -> Self {
        let index = LENGTHS.partition_point(|&min| min <= length).max(1) - 1;
        Self((1 + 2 * index + usize::from(share < 0.75)) as u8)
    }

    /// Returns its index in a table of [`Class::COUNT`] entries.
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// Returns the minimum match length and whether other matches disagree; `None` for forced tokens.
    pub fn matched(self) -> Option<(usize, bool)> {
        let index = self.index().checked_sub(1)?;
        Some((LENGTHS[index / 2], index % 2 == 1))
    }
}

/// A source of draft tokens. Wrong drafts only cost time: they never change the generated text.
pub trait DraftSource {
    /// Appends up to `max` draft tokens after `text` to `guesses`.
    fn guess(&self, text: &[u32], max: usize, guesses: &mut Vec<Guess>);
}

/// Tokens forced by a constraint.
pub struct Forced<'a>(pub &'a [u32]);

impl DraftSource for Forced<'_> {
    fn guess(&self, _text: &[u32], max: usize, guesses: &mut Vec<Guess>) {
        guesses.extend(self.0.iter().take(max).map(|&id| Guess { id, class: Class::FORCED }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_encode_match_length_and_agreement() {
        for (length, min) in [(0, 1), (1, 1), (2, 2), (6, 5), (7, 7), (27, 20), (28, 28), (1000, 28)] {
            assert_eq!(Class::of_match(length, 1.0).matched(), Some((min, false)), "{length}");
            assert_eq!(Class::of_match(length, 0.5).matched(), Some((min, true)), "{length}");
        }
        assert_eq!(Class::FORCED.matched(), None);
        assert_eq!(Class::of_match(9999, 0.1).index(), Class::COUNT - 1);
    }
}
