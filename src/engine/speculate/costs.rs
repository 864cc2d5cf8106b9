//! Measured costs of decode passes.

use std::time::Duration;

use crate::forward::DECODE_TOKENS;

/// Expected cost of a pass of 1 to 8 tokens, relative to one token, before it is measured.
const EXPECTED: [f64; DECODE_TOKENS] = [1.0, 1.1, 1.15, 1.25, 1.4, 1.6, 1.8, 2.0];
/// Depths at which passes are measured separately, since attention takes longer in longer texts.
const DEPTHS: [usize; 6] = [0, 512, 1024, 2048, 4096, 8192];
/// Number of measurements kept. Disturbances only make passes slower, so the short ones are used.
const RECENT: usize = 7;
/// Minimum number of measurements before a pass counts as more expensive than expected, since one may have been
/// disturbed.
const ENOUGH: usize = 3;
/// Number of passes after which a measurement expires, since the load of the machine may have changed.
const FORGOTTEN: u64 = 512;

/// The last measurements of a pass, in seconds.
#[derive(Clone, Copy, Default)]
struct Recent {
    seconds: [f64; RECENT],
    /// The total number of measurements.
    count: usize,
    /// The pass counter at the last measurement.
    last: u64,
}

impl Recent {
    /// Returns the second shortest of the last measurements, or the shortest if there are few.
    fn typical(&self) -> Option<f64> {
        let mut seconds = self.seconds;
        let sorted = &mut seconds[..self.count.min(RECENT)];
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get(usize::from(sorted.len() > ENOUGH)).copied()
    }
}

/// Costs of passes of 1 to 8 tokens, as measured in this session.
#[derive(Default)]
pub struct Costs {
    measured: [[Recent; DECODE_TOKENS]; DEPTHS.len()],
    passes: u64,
}

impl Costs {
    /// Records the time of a pass of `tokens` tokens at `depth` tokens of text.
    pub fn record(&mut self, tokens: usize, depth: usize, time: Duration) {
        self.passes += 1;
        let Some(recent) = self.measured[place(depth)].get_mut(tokens.wrapping_sub(1)) else { return };
        if recent.count > 0 && self.passes > recent.last + FORGOTTEN {
            recent.count = 0;
        }
        recent.seconds[recent.count % RECENT] = time.as_secs_f64();
        (recent.count, recent.last) = (recent.count + 1, self.passes);
    }

    /// Returns the time in seconds of a pass of `tokens` near `depth`, if it was measured recently.
    fn seconds(&self, tokens: usize, place: usize) -> Option<f64> {
        let recent = &self.measured[place][tokens - 1];
        recent.typical().filter(|_| self.passes <= recent.last + FORGOTTEN)
    }

    /// Returns the relative cost of a pass of `tokens` at `here` or the nearest measured depth, and the number of
    /// measurements.
    fn measured(&self, tokens: usize, here: usize) -> Option<(f64, usize)> {
        let mut places: Vec<usize> = (0..DEPTHS.len()).collect();
        places.sort_by_key(|place| place.abs_diff(here));
        let ratio = |&at: &usize| {
            let ratio = self.seconds(tokens, at)? / self.seconds(1, at)?;
            Some((ratio, self.measured[at][tokens - 1].count))
        };
        places.iter().find_map(ratio)
    }

    /// Returns the cost of a pass of `tokens` at `depth` relative to a pass of one token: as measured, or estimated
    /// from other passes.
    pub fn ratio(&self, tokens: usize, depth: usize) -> f64 {
        if tokens <= 1 {
            return 1.0;
        }
        let expected = |tokens: usize| EXPECTED[tokens.min(DECODE_TOKENS) - 1];
        let believed = |tokens| match self.measured(tokens, place(depth))? {
            (ratio, count) if count < ENOUGH => Some(ratio.min(expected(tokens))),
            (ratio, _) => Some(ratio),
        };
        let mut others: Vec<usize> = (2..=DECODE_TOKENS).collect();
        others.sort_by_key(|other| other.abs_diff(tokens));
        let scaled = |other: usize| {
            let ratio = believed(other)?;
            let scale = (expected(tokens) - 1.0) / (expected(other) - 1.0);
            Some(if other == tokens { ratio } else { 1.0 + (ratio - 1.0).max(0.0) * scale })
        };
        others.into_iter().find_map(scaled).unwrap_or(expected(tokens))
    }

    /// Returns the longest pass worth trying at `depth`: twice the longest that costs no more than expected, or that is
    /// known to cost more; 0 until single tokens were measured.
    pub fn most_tokens(&self, depth: usize) -> usize {
        let known = |&tokens: &usize| match self.measured(tokens, place(depth)) {
            Some((ratio, count)) => count >= ENOUGH || ratio <= 1.15 * EXPECTED[tokens - 1],
            None => false,
        };
        (1..=DECODE_TOKENS).rev().find(known).map_or(1, |tokens| (2 * tokens).min(DECODE_TOKENS))
    }
}

fn place(depth: usize) -> usize {
    DEPTHS.partition_point(|&least| least <= depth) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(costs: &mut Costs, tokens: usize, depth: usize, milliseconds: &[u64]) {
        milliseconds.iter().for_each(|&time| costs.record(tokens, depth, Duration::from_millis(time)));
    }

    #[test]
    fn what_was_measured_replaces_what_was_expected() {
        let mut costs = Costs::default();
        assert_eq!((costs.ratio(1, 0), costs.ratio(8, 0)), (1.0, EXPECTED[7]));
        record(&mut costs, 1, 0, &[10]);
        assert_eq!(costs.ratio(4, 0), EXPECTED[3]);
        record(&mut costs, 4, 0, &[40, 40]);
        assert_eq!(costs.ratio(4, 0), EXPECTED[3], "twice may be by accident");
        record(&mut costs, 4, 0, &[40]);
        assert_eq!(costs.ratio(4, 0), 4.0);
        assert!((costs.ratio(2, 0) - 2.2).abs() < 1e-9, "as much worse as a pass of 4");
        assert_eq!(costs.ratio(4, 9000), 4.0, "from another depth");
        record(&mut costs, 1, 5000, &[20, 20]);
        record(&mut costs, 4, 5000, &[30, 99, 30, 99, 99]);
        assert_eq!((costs.ratio(4, 9000), costs.ratio(4, 100)), (1.5, 4.0), "what was disturbed does not count");
    }

    #[test]
    fn a_measurement_is_forgotten_some_time() {
        let mut costs = Costs::default();
        record(&mut costs, 1, 0, &[10]);
        record(&mut costs, 2, 0, &[90, 90, 90]);
        assert_eq!(costs.ratio(2, 0), 9.0);
        (0..=FORGOTTEN).for_each(|_| record(&mut costs, 1, 0, &[10]));
        assert_eq!(costs.ratio(2, 0), EXPECTED[1]);
        record(&mut costs, 2, 0, &[11]);
        assert!((costs.ratio(2, 0) - 1.1).abs() < 1e-9);
    }

    #[test]
    fn larger_passes_are_tried_step_by_step() {
        let mut costs = Costs::default();
        assert_eq!(costs.most_tokens(0), 1);
        for (tokens, most) in [(1, 2), (2, 4), (3, 6), (4, 8), (8, 8)] {
            record(&mut costs, tokens, 0, &[10]);
            assert_eq!(costs.most_tokens(0), most);
        }
        let mut costs = Costs::default();
        record(&mut costs, 1, 0, &[10]);
        record(&mut costs, 2, 0, &[20, 20]);
        assert_eq!(costs.most_tokens(0), 2, "not before it is sure what that costs");
    }
}
