//! Measured costs of decode passes.

use std::time::Duration;

use crate::forward::DECODE_TOKENS;

/// Maximum number of rows of a pass with drafts: the tokens of all sequences.
pub const ROWS: usize = 64;
/// Expected cost of a pass of 1 to 8 rows, relative to one row, before it is measured.
const EXPECTED: [f64; DECODE_TOKENS] = [1.0, 1.1, 1.15, 1.25, 1.4, 1.6, 1.8, 2.0];
/// Expected cost of each further row.
const MORE: f64 = 0.2;
/// Depths at which passes are measured separately, since attention takes longer in longer texts.
const DEPTHS: [usize; 6] = [0, 512, 1024, 2048, 4096, 8192];
/// Number of measurements kept. Disturbances only make passes slower, so the short ones are used.
const RECENT: usize = 7;
/// Minimum number of measurements before a pass counts as more expensive than expected, since one may have been
/// disturbed.
const ENOUGH: usize = 3;
/// Number of passes after which a measurement expires, since the load of the machine may have changed.
const EXPIRY: u64 = 512;

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

/// Measured costs of decode passes, by their total number of rows: each sequence has one or more.
pub struct Costs {
    /// Indexed by depth, then by rows.
    measured: Vec<[Recent; ROWS]>,
    /// The largest number of rows measured.
    largest: usize,
    passes: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { measured: vec![[Recent::default(); ROWS]; DEPTHS.len()], largest: 0, passes: 0 }
    }
}

impl Costs {
    /// Records the time of a pass of `rows` rows at `depth` tokens of text.
    pub fn record(&mut self, rows: usize, depth: usize, time: Duration) {
        self.passes += 1;
        let Some(recent) = self.measured[depth_index(depth)].get_mut(rows.wrapping_sub(1)) else { return };
        self.largest = self.largest.max(rows);
        if recent.count > 0 && self.passes > recent.last + EXPIRY {
            recent.count = 0;
        }
        recent.seconds[recent.count % RECENT] = time.as_secs_f64();
        (recent.count, recent.last) = (recent.count + 1, self.passes);
    }

    /// Returns the measurements of passes of `rows` at a depth, if there are recent ones.
    fn recent(&self, rows: usize, depth_index: usize) -> Option<&Recent> {
        let recent = self.measured[depth_index].get(rows.wrapping_sub(1))?;
        (recent.count > 0 && self.passes <= recent.last + EXPIRY).then_some(recent)
    }

    /// Returns the number of recent measurements of passes of `rows`: the maximum over all depths.
    pub fn measurements(&self, rows: usize) -> usize {
        (0..DEPTHS.len())
            .filter_map(|depth_index| self.recent(rows, depth_index))
            .map(|recent| recent.count)
            .max()
            .unwrap_or(0)
    }

    /// Returns the cost of a pass of `rows` relative to `base` rows at `depth` or the nearest measured depth, and the number
    /// of measurements.
    fn measured(&self, rows: usize, base: usize, depth: usize) -> Option<(f64, usize)> {
        let nearest = depth_index(depth);
        let indices =
            (0..DEPTHS.len()).flat_map(|away| [nearest.checked_sub(away), nearest.checked_add(away)]).flatten();
        let ratio = |at: usize| {
            let recent = self.recent(rows, at)?;
            Some((recent.typical()? / self.recent(base, at)?.typical()?, recent.count))
        };
        indices.filter(|&at| at < DEPTHS.len()).find_map(ratio)
    }

    /// Returns the costs of passes of `base` to `max` rows at `depth` relative to `base` rows: as measured, or estimated
    /// from other passes.
    pub fn ratios(&self, base: usize, max: usize, depth: usize) -> Vec<f64> {
        let estimate = |rows: usize| match self.measured(rows, base, depth)? {
            (ratio, count) if count < ENOUGH => Some(ratio.min(expected(rows, base))),
            (ratio, _) => Some(ratio),
        };
        let max_measured = (2 * max).clamp(DECODE_TOKENS, ROWS);
        let measured: Vec<(usize, f64)> =
            (base + 1..=max_measured.min(self.largest)).filter_map(|rows| Some((rows, estimate(rows)?))).collect();
        let ratio = |rows: usize| match measured.iter().min_by_key(|(other, _)| other.abs_diff(rows)) {
            _ if rows == base => 1.0,
            Some(&(other, ratio)) if other == rows => ratio,
            Some(&(other, ratio)) => {
                let scale = (expected(rows, base) - 1.0) / (expected(other, base) - 1.0);
                1.0 + (ratio - 1.0).max(0.0) * scale
            }
            None => expected(rows, base),
        };
        (base..=max).map(ratio).collect()
    }

    /// Returns the largest pass worth trying at `depth`: twice the largest that costs no more than expected, or that is
    /// known to cost more; `base` until passes of `base` rows were measured.
    pub fn max_rows(&self, base: usize, depth: usize) -> usize {
        let known = |&rows: &usize| match self.measured(rows, base, depth) {
            Some((ratio, count)) => count >= ENOUGH || ratio <= 1.15 * expected(rows, base),
            None => false,
        };
        (base..=self.largest).rev().find(known).map_or(base, |rows| (2 * rows).min(ROWS))
    }
}

/// Returns the expected cost of a pass of `rows` relative to `base` rows.
fn expected(rows: usize, base: usize) -> f64 {
    let cost = |rows: usize| match EXPECTED.get(rows.max(1) - 1) {
        Some(&cost) => cost,
        None => EXPECTED[DECODE_TOKENS - 1] + MORE * (rows - DECODE_TOKENS) as f64,
    };
    cost(rows) / cost(base)
}

fn depth_index(depth: usize) -> usize {
    DEPTHS.partition_point(|&min| min <= depth) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(costs: &Costs, rows: usize, depth: usize) -> f64 {
        costs.ratios(1, rows, depth)[rows - 1]
    }

    fn record(costs: &mut Costs, tokens: usize, depth: usize, milliseconds: &[u64]) {
        milliseconds.iter().for_each(|&time| costs.record(tokens, depth, Duration::from_millis(time)));
    }

    #[test]
    fn measurements_replace_expected_costs() {
        let mut costs = Costs::default();
        assert_eq!((ratio(&costs, 1, 0), ratio(&costs, 8, 0)), (1.0, EXPECTED[7]));
        record(&mut costs, 1, 0, &[10]);
        assert_eq!(ratio(&costs, 4, 0), EXPECTED[3]);
        record(&mut costs, 4, 0, &[40, 40]);
        assert_eq!(ratio(&costs, 4, 0), EXPECTED[3], "two slow passes may be outliers");
        record(&mut costs, 4, 0, &[40]);
        assert_eq!(ratio(&costs, 4, 0), 4.0);
        assert!((ratio(&costs, 2, 0) - 2.2).abs() < 1e-9, "scaled from a pass of 4 rows");
        assert_eq!(ratio(&costs, 4, 9000), 4.0, "from another depth");
        record(&mut costs, 1, 5000, &[20, 20]);
        record(&mut costs, 4, 5000, &[30, 99, 30, 99, 99]);
        assert_eq!((ratio(&costs, 4, 9000), ratio(&costs, 4, 100)), (1.5, 4.0), "outliers are ignored");
    }

    #[test]
    fn measurements_expire() {
        let mut costs = Costs::default();
        record(&mut costs, 1, 0, &[10]);
        record(&mut costs, 2, 0, &[90, 90, 90]);
        assert_eq!(ratio(&costs, 2, 0), 9.0);
        (0..=EXPIRY).for_each(|_| record(&mut costs, 1, 0, &[10]));
        assert_eq!(ratio(&costs, 2, 0), EXPECTED[1]);
        record(&mut costs, 2, 0, &[11]);
        assert!((ratio(&costs, 2, 0) - 1.1).abs() < 1e-9);
    }

    #[test]
    fn larger_passes_are_tried_step_by_step() {
        let mut costs = Costs::default();
        assert_eq!(costs.max_rows(1, 0), 1);
        for (tokens, max) in [(1, 2), (2, 4), (3, 6), (4, 8), (8, 16)] {
            record(&mut costs, tokens, 0, &[10]);
            assert_eq!(costs.max_rows(1, 0), max);
        }
        let mut costs = Costs::default();
        record(&mut costs, 1, 0, &[10]);
        record(&mut costs, 2, 0, &[20, 20]);
        assert_eq!(costs.max_rows(1, 0), 2, "two measurements are not enough");
    }

    #[test]
    fn costs_are_relative_to_the_rows_of_all_sequences() {
        let mut costs = Costs::default();
        record(&mut costs, 1, 0, &[10]);
        record(&mut costs, 5, 0, &[20, 20, 20]);
        assert_eq!((costs.measurements(5), costs.measurements(6)), (3, 0));
        assert_eq!(costs.max_rows(5, 0), 10);
        assert_eq!(costs.max_rows(9, 0), 9, "passes of 9 rows without drafts were not measured");
        record(&mut costs, 8, 0, &[50, 50, 50]);
        let ratios = costs.ratios(5, 11, 0);
        assert_eq!((ratios.len(), ratios[0], ratios[3]), (7, 1.0, 2.5));
        assert!((ratios[6] - (1.0 + 1.5 * 1.2 / 0.6)).abs() < 1e-9, "{ratios:?}");
        assert_eq!(costs.max_rows(5, 0), 16);
    }
}
