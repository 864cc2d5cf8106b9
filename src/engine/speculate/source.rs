//! Where drafts come from.

/// A guess of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// Its id.
    pub id: u32,
    /// What its chances depend on.
    pub class: Class,
}

/// What the chances of a guess depend on: whether no other token is allowed, or how many tokens before it are the same as
/// where it was found, and whether it was always found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

/// Lengths of a match from which on another class begins.
const LENGTHS: [usize; 10] = [1, 2, 3, 4, 5, 7, 10, 14, 20, 28];

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 1 + 2 * LENGTHS.len();
    /// Of the only token that is allowed.
    pub const FORCED: Self = Self(0);

    /// Returns the class of a guess that was found after `length` tokens that are the same, with this share of all that was
    /// found there.
    pub fn of_match(length: usize, share: f64) -> Self {
        let place = LENGTHS.partition_point(|&least| least <= length).max(1) - 1;
        Self((1 + 2 * place + usize::from(share < 0.75)) as u8)
    }

    /// Returns its place in a table of [`Class::COUNT`].
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// Returns the least length of its matches, and whether other tokens were found there; `None`: no other is allowed.
    pub fn matched(self) -> Option<(usize, bool)> {
        let place = self.index().checked_sub(1)?;
        Some((LENGTHS[place / 2], place % 2 == 1))
    }
}

/// Guesses what comes next. A guess may be wrong: the text is the same, and only time is lost.
pub trait DraftSource {
    /// Appends guesses of the tokens that follow `text`, at most `most`, to `guesses`.
    fn guess(&self, text: &[u32], most: usize, guesses: &mut Vec<Guess>);
}

/// Tokens that no other is allowed for.
pub struct Forced<'a>(pub &'a [u32]);

impl DraftSource for Forced<'_> {
    fn guess(&self, _text: &[u32], most: usize, guesses: &mut Vec<Guess>) {
        guesses.extend(self.0.iter().take(most).map(|&id| Guess { id, class: Class::FORCED }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_tell_lengths_and_contests_apart() {
        for (length, least) in [(0, 1), (1, 1), (2, 2), (6, 5), (7, 7), (27, 20), (28, 28), (1000, 28)] {
            assert_eq!(Class::of_match(length, 1.0).matched(), Some((least, false)), "{length}");
            assert_eq!(Class::of_match(length, 0.5).matched(), Some((least, true)), "{length}");
        }
        assert_eq!(Class::FORCED.matched(), None);
        assert_eq!(Class::of_match(9999, 0.1).index(), Class::COUNT - 1);
    }
}
