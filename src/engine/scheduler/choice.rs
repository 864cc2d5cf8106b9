//! Per-job changes to the logits: biases, penalties, log probabilities.

use std::collections::HashMap;

use super::{Job, Logprobs};

/// Applies the biases and penalties of a job.
pub(super) struct Bias {
    fixed: Vec<(u32, f32)>,
    frequency: f32,
    presence: f32,
    /// How often each token was generated.
    counts: HashMap<u32, u32>,
    /// Reused so that choosing a token does not allocate.
    changed: Vec<f32>,
}

impl Bias {
    /// Returns the biases and penalties of a job.
    pub fn new(job: &Job) -> Self {
        Self {
            fixed: job.bias.clone(),
            frequency: job.frequency_penalty,
            presence: job.presence_penalty,
            counts: HashMap::new(),
            changed: Vec::new(),
        }
    }

    /// Counts a generated token.
    pub fn count(&mut self, id: u32) {
        if self.frequency != 0.0 || self.presence != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    /// Returns the adjusted logits.
    pub fn applied<'a>(&'a mut self, logits: &'a [f32]) -> &'a [f32] {
        if self.fixed.is_empty() && self.counts.is_empty() {
            return logits;
        }
        self.changed.clear();
        self.changed.extend_from_slice(logits);
        let mut add = |id: u32, delta: f32| {
            if let Some(logit) = self.changed.get_mut(id as usize) {
                *logit += delta;
            }
        };
        self.fixed.iter().for_each(|&(id, bias)| add(id, bias));
        self.counts.iter().for_each(|(&id, &count)| add(id, -(self.presence + self.frequency * count as f32)));
        &self.changed
    }
}

/// Returns the log probability of `id` and the `top` most likely tokens.
pub(super) fn logprobs(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let logprob = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::MIN);
        (f64::from(logit) - f64::from(max) - sum.ln()) as f32
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let top = top.min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top, order);
    }
    ids.truncate(top);
    ids.sort_unstable_by(order);
    Logprobs { logprob: logprob(id), top: ids.into_iter().map(|id| (id, logprob(id))).collect() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn probabilities_are_those_of_softmax() {
        let logits = [1.0f32, 3.0, 2.0, 3.0];
        let sum: f32 = logits.iter().map(|v| v.exp()).sum();
        let want = |i: usize| (logits[i].exp() / sum).ln();
        let got = logprobs(&logits, 2, 3);
        assert!((got.logprob - want(2)).abs() < 1e-6);
        let ids: Vec<u32> = got.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 3, 2], "the lower id first among equals");
        assert!((got.top[0].1 - want(1)).abs() < 1e-6);
        assert_eq!(logprobs(&logits, 0, 0).top, []);
        assert_eq!(logprobs(&logits, 0, 9).top.len(), 4);
        let large = logprobs(&[1e30, -1e30], 0, 1);
        assert_eq!((large.logprob, large.top), (0.0, vec![(0, 0.0)]));
    }

    #[test]
    fn penalties_count_generated_tokens() {
        let (frequency_penalty, presence_penalty) = (0.5, 0.25);
        let bias = vec![(0, -100.0), (9, 1.0)];
        let job = Job { frequency_penalty, presence_penalty, bias, ..Job::new(vec![1], Box::new(sync_channel(1).0)) };
        let mut bias = Bias::new(&job);
        assert_eq!(bias.applied(&[1.0, 2.0, 3.0]), [-99.0, 2.0, 3.0]);
        [1, 1, 2].into_iter().for_each(|id| bias.count(id));
        assert_eq!(bias.applied(&[1.0, 2.0, 3.0]), [-99.0, 0.75, 2.25]);
        let mut none = Bias::new(&Job::new(vec![1], Box::new(sync_channel(1).0)));
        none.count(1);
        assert_eq!(none.applied(&[1.0, 2.0]), [1.0, 2.0]);
    }
}
