//! Decides how many prompt rows a pass prefills along with decoding sequences, based on measured pass times.

use std::time::Duration;

/// Maximum time of a pass with prompt rows, relative to one without.
const MAX_SLOWDOWN: f64 = 2.5;
/// The target, which leaves room for noise.
const TARGET_SLOWDOWN: f64 = 2.0;
/// Maximum time in seconds of a pass that delays no sequence, since a new job may have to wait for it.
const MAX_ALONE_SECONDS: f64 = 0.4;
/// Rows of such a pass until something has been measured.
const INITIAL_ROWS: usize = 16;
/// Weight of a new measurement in the running means.
const WEIGHT: f64 = 0.25;

/// Measured costs of passes.
#[derive(Default)]
pub(super) struct PrefillBudget {
    /// Seconds of a pass by its number of decoded rows; 0: unknown.
    decode: Vec<f64>,
    /// Seconds that a prompt row adds to a pass with decoded rows; 0: unknown.
    added: f64,
    /// Mean seconds per row of such a pass. More rows cost less each, as they share the weights.
    mean: f64,
    /// The largest number of prompt rows that stayed within the target in a pass with decoded rows.
    largest_tried: usize,
    /// Seconds per prompt row in a pass of its own; 0: unknown.
    alone: f64,
}

impl PrefillBudget {
    /// Returns the number of prompt rows, from 1 to `max`, for a pass with `decoded` decoded rows.
    pub fn rows(&self, decoded: usize, max: usize) -> usize {
        let rows = match self.decode_seconds(decoded) {
            _ if decoded == 0 && self.alone == 0.0 => INITIAL_ROWS,
            _ if decoded == 0 => ((MAX_ALONE_SECONDS / self.alone) as usize).max(INITIAL_ROWS),
            // Twice the rows take at most twice the time.
            Some(decode_seconds) if self.added > 0.0 => {
                let by_added = decode_seconds * (TARGET_SLOWDOWN - 1.0) / self.added;
                let by_mean = decode_seconds * TARGET_SLOWDOWN / self.mean - decoded as f64;
                (by_added.min(by_mean) as usize).min(2 * self.largest_tried.max(decoded))
            }
            _ => decoded,
        };
        rows.clamp(1, max.max(1))
    }

    /// Records a pass that took `elapsed`.
    pub fn record(&mut self, decoded: usize, prompt: usize, elapsed: Duration) {
        let elapsed = elapsed.as_secs_f64().max(1e-9);
        match (decoded, prompt) {
            (0, 0) => {}
            (0, prompt) => blend(&mut self.alone, elapsed / prompt as f64),
            (decoded, 0) => {
                if self.decode.len() <= decoded {
                    self.decode.resize(decoded + 1, 0.0);
                }
                blend(&mut self.decode[decoded], elapsed);
            }
            (decoded, prompt) => {
                let Some(decode_seconds) = self.decode_seconds(decoded) else { return };
                let added = (elapsed - decode_seconds).max(decode_seconds * 0.01) / prompt as f64;
                let mean = elapsed / (decoded + prompt) as f64;
                let is_long = elapsed > decode_seconds * MAX_SLOWDOWN;
                // The cost per row falls with the number of rows, so measurements of fewer rows do not apply.
                let is_more = prompt >= self.largest_tried;
                for (known, new) in [(&mut self.added, added), (&mut self.mean, mean)] {
                    match is_long {
                        true => *known = known.max(new),
                        false if is_more => *known = new,
                        false => blend(known, new),
                    }
                }
                self.largest_tried = if is_long { prompt / 2 } else { self.largest_tried.max(prompt) };
            }
        }
    }

    /// Whether to measure a pass without prompt rows before one with them.
    pub fn is_unknown(&self, decoded: usize) -> bool {
        decoded > 0 && self.decode_seconds(decoded).is_none()
    }

    /// Returns the time of a pass of `decoded` rows, as measured for that number or a smaller one.
    fn decode_seconds(&self, decoded: usize) -> Option<f64> {
        let known = self.decode.iter().take(decoded + 1).rev().copied().find(|&cost| cost > 0.0);
        known.or_else(|| self.decode.iter().copied().find(|&cost| cost > 0.0).map(|cost| cost * 0.5))
    }
}

fn blend(known: &mut f64, new: f64) {
    *known = if *known == 0.0 { new } else { *known + WEIGHT * (new - *known) };
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Seconds of a pass on a simulated machine.
    type Machine = fn(usize, usize) -> f64;

    /// Gaps between tokens of `decoded` sequences, relative to the usual gap, during the prefill of `prompt` tokens;
    /// and the number of passes.
    fn gaps(machine: Machine, budget: &mut PrefillBudget, decoded: usize, mut prompt: usize) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut gaps = Vec::new();
        while prompt > 0 {
            let rows = if budget.is_unknown(decoded) { 0 } else { budget.rows(decoded, 240).min(prompt) };
            let noise = 1.0 + 0.1 * rng.random::<f64>();
            let cost = machine(decoded, rows) * noise;
            budget.record(decoded, rows, Duration::from_secs_f64(cost));
            gaps.push(cost / (machine(decoded, 0) * 1.05));
            prompt -= rows;
        }
        gaps
    }

    #[test]
    fn token_gaps_stay_below_the_limit_on_any_machine() {
        let machines: [Machine; 4] = [
            |decoded, rows| 0.1 + 0.01 * (decoded + rows) as f64, // dominated by reading weights
            |decoded, rows| 0.001 * (decoded + rows) as f64,      // cost of weights negligible
            |decoded, rows| (0.05 + 0.001 * decoded as f64).max(0.004 * (decoded + rows) as f64),
            |decoded, rows| 0.03 + 0.002 * decoded as f64 + if rows < 12 { 0.003 } else { 0.0015 } * rows as f64,
        ];
        for (i, machine) in machines.into_iter().enumerate() {
            for texts in [1, 2, 8] {
                let budget = &mut PrefillBudget::default();
                let first = gaps(machine, budget, texts, 2000);
                let worst = first.iter().copied().fold(0.0, f64::max);
                assert!(worst <= MAX_SLOWDOWN, "machine {i}, {texts} texts: a gap of {worst}");
                let later = gaps(machine, budget, texts, 2000);
                let worst = later.iter().copied().fold(0.0, f64::max);
                assert!(worst <= MAX_SLOWDOWN, "machine {i}, {texts} texts: a later gap of {worst}");
                let mean = later.iter().sum::<f64>() / later.len() as f64;
                assert!(mean > 1.4, "machine {i}, {texts} texts: the prompt gets too little, {mean}");
                // more sequences: only the cost for fewer of them is known
                let more = gaps(machine, budget, texts + 3, 2000);
                let worst = more.iter().copied().fold(0.0, f64::max);
                assert!(worst <= MAX_SLOWDOWN, "machine {i}, {texts} texts and three: a gap of {worst}");
            }
        }
    }

    #[test]
    fn short_prompts_are_prefilled_in_few_passes() {
        let machine: Machine = |decoded, rows| 0.03 + 0.002 * decoded as f64 + 0.0015 * rows as f64;
        for texts in [1, 7] {
            let passes = gaps(machine, &mut PrefillBudget::default(), texts, 16).len();
            assert!(passes <= 7, "{texts} texts: {passes} passes");
        }
    }

    #[test]
    fn prompts_get_long_passes_when_nothing_decodes() {
        let mut budget = PrefillBudget::default();
        assert_eq!(budget.rows(0, 240), INITIAL_ROWS);
        budget.record(0, 16, Duration::from_millis(16));
        assert_eq!(budget.rows(0, 240), 240);
        assert_eq!(budget.rows(0, 5), 5);
        (0..20).for_each(|_| budget.record(0, 16, Duration::from_millis(160)));
        assert!((35..50).contains(&budget.rows(0, 240)), "{}", budget.rows(0, 240));
    }
}
