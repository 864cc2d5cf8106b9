//! Acceptance rates of draft tokens.

use super::Class;

/// Acceptance rate of a class, as a decaying average.
#[derive(Clone, Copy)]
struct Share {
    right: f64,
    all: f64,
}

/// Acceptance rates by class. Guesses that were not drafted count too, since checking them costs nothing.
pub struct Acceptance {
    shares: [Share; Class::COUNT],
}

/// Number of guesses that the decaying average remembers.
const MEMORY: f64 = 64.0;
/// Weight of the initial estimate, in guesses.
const EXPECTED: f64 = 6.0;

impl Default for Acceptance {
    fn default() -> Self {
        let expected = |index: usize| match index.checked_sub(1) {
            None => 0.97,
            Some(index) => {
                let certain = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85][index / 2];
                if index % 2 == 1 { 0.5 * certain } else { certain }
            }
        };
        let share = |index| Share { right: EXPECTED * expected(index), all: EXPECTED };
        Self { shares: std::array::from_fn(share) }
    }
}

impl Acceptance {
    /// Returns the estimated acceptance probability of a class.
    pub fn of(&self, class: Class) -> f64 {
        let Share { right, all } = self.shares[class.index()];
        right / all
    }

    /// Records whether a guess was right.
    pub fn record(&mut self, class: Class, right: bool) {
        let share = &mut self.shares[class.index()];
        share.right += f64::from(u8::from(right));
        share.all += 1.0;
        if share.all > MEMORY {
            let scale = MEMORY / share.all;
            *share = Share { right: share.right * scale, all: MEMORY };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptance_rates_follow_recent_guesses() {
        let mut acceptance = Acceptance::default();
        let [long, short] = [12, 1].map(|length| Class::of_match(length, 1.0));
        assert!(acceptance.of(long) > acceptance.of(short));
        (0..40).for_each(|_| acceptance.record(long, false));
        (0..40).for_each(|_| acceptance.record(short, true));
        assert!(acceptance.of(long) < 0.15 && acceptance.of(short) > 0.85);
        (0..200).for_each(|_| acceptance.record(long, true));
        assert!(acceptance.of(long) > 0.9, "older results have less weight");
        assert!(acceptance.of(Class::FORCED) > 0.9);
    }
}
