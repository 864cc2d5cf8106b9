//! The draft policy: how many draft tokens to verify in the next pass.

use std::time::Duration;

use super::{Costs, ROWS};
use crate::forward::DECODE_TOKENS;

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// The number that is expected to be fastest, from measured pass times and acceptance rates.
    #[default]
    Auto,
    /// None.
    Off,
    /// This many, whenever a draft is available.
    Fixed(usize),
}

impl Speculate {
    /// Maximum draft tokens per pass.
    pub const MAX: usize = DECODE_TOKENS - 1;
}

/// Minimum expected speedup to draft at all, since estimates are inexact.
const GAIN: f64 = 1.02;
/// Passes with drafts after which one without is measured again, since the speed of the machine may have changed.
const SINGLE: usize = 64;
/// Passes without drafts measured before anything is drafted.
const FIRST: usize = 2;

/// Decides how many tokens to draft, from acceptance rates and measured pass times.
pub struct Policy {
    speculate: Speculate,
    costs: Costs,
    /// Number of passes with a draft since the last one without.
    since_single: usize,
}

impl Policy {
    /// Returns a policy without measurements.
    pub fn new(speculate: Speculate) -> Self {
        Self { speculate, costs: Costs::default(), since_single: 0 }
    }

    /// Whether speculative decoding is enabled.
    pub fn is_on(&self) -> bool {
        self.speculate != Speculate::Off
    }

    /// Returns the number of draft tokens of each sequence of the next pass. For each, `chances` has the probability that
    /// its first draft token is accepted, the first two, and so on; `depth` is the mean of the sequences' depths.
    pub fn drafts(&self, chances: &[Vec<f64>], depth: usize) -> Vec<usize> {
        let texts = chances.len();
        let none = vec![0; texts];
        let free_rows = ROWS.saturating_sub(texts);
        match self.speculate {
            _ if texts == 0 || free_rows == 0 => none,
            Speculate::Off => none,
            Speculate::Fixed(max) => {
                let max = max.min(free_rows.div_ceil(texts));
                let mut left = free_rows;
                let mut take = |chances: &Vec<f64>| {
                    let taken = chances.len().min(max).min(left);
                    left -= taken;
                    taken
                };
                chances.iter().map(&mut take).collect()
            }
            Speculate::Auto if self.since_single >= SINGLE || self.costs.measurements(texts) < FIRST => none,
            Speculate::Auto => self.worthwhile(chances, depth),
        }
    }

    /// Returns the numbers of draft tokens with the highest expected throughput of all sequences together. Each further
    /// row goes to the sequence whose next draft token is most likely accepted.
    fn worthwhile(&self, chances: &[Vec<f64>], depth: usize) -> Vec<usize> {
        let texts = chances.len();
        let guesses: usize = chances.iter().map(Vec::len).sum();
        let mut drafts = vec![0; texts];
        let mut best = drafts.clone();
        if guesses == 0 {
            return best;
        }
        let max = self.costs.max_rows(texts, depth).min(texts + guesses);
        let ratios = self.costs.ratios(texts, max, depth);
        let (mut fastest, mut expected) = (GAIN, texts as f64);
        for ratio in &ratios[1..] {
            let next = (0..texts).map(|text| (text, chances[text].get(drafts[text]).copied().unwrap_or(0.0)));
            let Some((text, chance)) = next.reduce(|best, next| if next.1 > best.1 { next } else { best }) else {
                break;
            };
            drafts[text] += 1;
            expected += chance;
            let speed = expected / texts as f64 / ratio;
            if speed > fastest {
                fastest = speed;
                best.clone_from(&drafts);
            }
        }
        best
    }

    /// Drops all measurements, after a change of the device.
    pub fn forget(&mut self) {
        *self = Self::new(self.speculate);
    }

    /// Records the time of a pass of `rows` rows for `texts` sequences.
    pub fn record(&mut self, [texts, rows]: [usize; 2], depth: usize, elapsed: Duration) {
        self.since_single = if rows == texts { 0 } else { self.since_single + 1 };
        self.costs.record(rows, depth, elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a policy with measurements: rows and milliseconds.
    fn policy(speculate: Speculate, passes: &[(usize, u64)]) -> Policy {
        let mut policy = Policy::new(speculate);
        for &(rows, time) in passes {
            (0..3).for_each(|_| policy.costs.record(rows, 0, Duration::from_millis(time)));
        }
        policy
    }

    #[test]
    fn rows_go_to_likely_drafts() {
        let chances = [vec![0.9, 0.8, 0.1], vec![], vec![0.95, 0.85, 0.84], vec![0.6]];
        let cheap = policy(Speculate::Auto, &[(4, 100), (8, 120), (16, 150)]);
        assert_eq!(cheap.drafts(&chances, 0), [2, 0, 3, 1]);
        let dear = policy(Speculate::Auto, &[(4, 100), (5, 124), (6, 148), (8, 196), (16, 390)]);
        assert_eq!(dear.drafts(&chances, 0), [0; 4], "a row costs 96 % of a token");
        let between = policy(Speculate::Auto, &[(4, 100), (5, 115), (6, 130), (7, 145), (8, 160), (9, 174), (16, 370)]);
        assert_eq!(between.drafts(&chances, 0), [2, 0, 3, 0]);
        // Eight sequences on two cores: a row costs 80 % of a token.
        let eight = policy(Speculate::Auto, &[(8, 249), (9, 274), (10, 299), (12, 349), (16, 449)]);
        let mut chances = vec![vec![0.79; 3]; 8];
        assert_eq!(eight.drafts(&chances, 0), [0; 8]);
        chances[5] = vec![0.99, 0.98, 0.97, 0.96];
        assert_eq!(eight.drafts(&chances, 0), [0, 0, 0, 0, 0, 4, 0, 0]);
        assert_eq!(between.drafts(&[], 0), [0; 0]);
        assert_eq!(between.drafts(&[vec![], vec![]], 0), [0, 0]);
    }

    #[test]
    fn passes_without_drafts_are_measured_first() {
        let chances = vec![vec![1.0; 7]; 3];
        let mut policy = policy(Speculate::Auto, &[(1, 100), (2, 110), (6, 120)]);
        assert_eq!(policy.drafts(&chances, 0), [0; 3]);
        (0..FIRST).for_each(|_| policy.record([3, 3], 0, Duration::from_millis(110)));
        assert!(policy.drafts(&chances, 0).iter().sum::<usize>() >= 3);
        (0..SINGLE).for_each(|_| policy.record([3, 6], 0, Duration::from_millis(120)));
        assert_eq!(policy.drafts(&chances, 0), [0; 3], "measured again from time to time");
        policy.record([3, 3], 0, Duration::from_millis(110));
        assert!(policy.drafts(&chances, 0).iter().sum::<usize>() >= 3);
    }

    #[test]
    fn fixed_drafts_are_limited_by_the_rows_of_a_pass() {
        let drafts = |texts: usize, max| policy(Speculate::Fixed(max), &[]).drafts(&vec![vec![0.1; 7]; texts], 0);
        assert_eq!((drafts(1, 7), drafts(3, 2)), (vec![7], vec![2; 3]));
        assert_eq!(policy(Speculate::Fixed(3), &[]).drafts(&[vec![0.1], vec![]], 0), [1, 0]);
        for texts in [8, 9, 40, 64, 100] {
            let drafts = drafts(texts, 7);
            assert_eq!(drafts.iter().sum::<usize>(), (7 * texts).min(ROWS.saturating_sub(texts)), "{texts}");
        }
        assert_eq!(policy(Speculate::Off, &[(1, 1), (2, 1)]).drafts(&[vec![1.0]], 0), [0]);
    }
}
