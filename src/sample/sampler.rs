//! The sampler chain, in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw.

use std::collections::{BTreeMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{SamplingParams, Setting, TokenSet};

/// A candidate token. The order is most likely first, and lower id first among equals.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// The serialized form of a sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedSampler {
    /// Parameters by flag name.
    settings: BTreeMap<String, f64>,
    seed: u64,
    /// Number of 32-bit random words used.
    drawn: u64,
}

/// Chooses tokens. The same seed, logits and history give the same tokens; a clone continues the same sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: ChaCha8Rng,
    banned: Vec<u32>,
    /// Reused so that sampling does not allocate.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Returns a sampler whose random numbers are determined by `seed`.
    pub fn new(params: SamplingParams, seed: u64) -> Self {
        Self { params, seed, rng: ChaCha8Rng::seed_from_u64(seed), banned: Vec::new(), candidates: Vec::new() }
    }

    /// Restores a sampler. The error is to be appended to "the sampler".
    pub fn from_saved(saved: &SavedSampler) -> Result<Self, String> {
        let mut params = SamplingParams::default();
        for (name, &value) in &saved.settings {
            let setting = Setting::ALL.into_iter().find(|s| s.name() == name);
            let setting = setting.ok_or_else(|| format!("has an unknown setting `{name}`"))?;
            params.set(setting, value).map_err(|reason| format!("has {name} {value}, which {reason}"))?;
        }
        let mut sampler = Self::new(params, saved.seed);
        sampler.rng.set_word_pos(saved.drawn.into());
        Ok(sampler)
    }

    /// Returns the serialized form for [`Sampler::from_saved`].
    pub fn saved(&self) -> SavedSampler {
        SavedSampler {
            settings: Setting::ALL.into_iter().map(|s| (s.name().into(), self.params.get(s))).collect(),
            seed: self.seed,
            drawn: u64::try_from(self.rng.get_word_pos()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Changes the parameters without resetting the random numbers.
    pub fn set_params(&mut self, params: SamplingParams) {
        self.params = params;
    }

    /// Returns the random seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Restarts the random numbers from `seed`.
    pub fn set_seed(&mut self, seed: u64) {
        (self.seed, self.rng) = (seed, ChaCha8Rng::seed_from_u64(seed));
    }

    /// Excludes `id` (such as an end token that must be ignored) unless there is no other token.
    pub fn ban(&mut self, id: u32) {
        self.banned.push(id);
    }

    /// Chooses the next token from `logits` `[vocab]`, which may contain infinities and NaN (chosen only if there is
    /// nothing else). `history` is all tokens so far, for the repetition penalty.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit: finite(logit), id }));
        penalize(&mut self.candidates, &self.params, history);
        self.choose()
    }

    /// [`Sampler::sample`] restricted to `allowed`. There is no repetition penalty, which would penalize tokens that a
    /// constraint requires repeatedly, such as quotation marks.
    pub fn sample_among(&mut self, logits: &[f32], allowed: &TokenSet) -> u32 {
        self.candidates.clear();
        let logit = |id: u32| logits.get(id as usize).copied().map(finite);
        self.candidates.extend(allowed.iter().filter_map(|id| Some(Candidate { logit: logit(id)?, id })));
        self.choose()
    }

    /// Chooses one of the candidates.
    fn choose(&mut self) -> u32 {
        let Self { params, rng, banned, candidates, .. } = self;
        if !banned.is_empty() && candidates.iter().any(|c| !banned.contains(&c.id)) {
            candidates.retain(|c| !banned.contains(&c.id));
        }
        if params.temperature == 0.0 {
            return candidates.iter().min_by(|a, b| Candidate::order(a, b)).map_or(0, |c| c.id);
        }
        if params.top_k > 0 {
            keep_top(candidates, params.top_k);
        }
        if params.top_p < 1.0 {
            keep_mass(candidates, params.top_p);
        }
        if params.min_p > 0.0 {
            let least = highest(candidates) + params.min_p.ln();
            candidates.retain(|c| c.logit >= least);
        }
        draw(candidates, params.temperature, rng)
    }
}

/// Maps NaN and −∞ to the smallest number, ∞ to the largest, and −0 to 0.
fn finite(logit: f32) -> f32 {
    if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) + 0.0 }
}

/// Penalizes each token among the last of `history`, once regardless of how often it occurs.
fn penalize(candidates: &mut [Candidate], params: &SamplingParams, history: &[u32]) {
    if params.repeat_penalty == 1.0 {
        return;
    }
    let recent = &history[history.len().saturating_sub(params.repeat_last_n)..];
    for &id in recent.iter().collect::<HashSet<_>>() {
        if let Some(c) = candidates.get_mut(id as usize) {
            let scale = if c.logit > 0.0 { params.repeat_penalty.recip() } else { params.repeat_penalty };
            c.logit = finite(c.logit * scale);
        }
    }
}

/// Keeps the `k` most likely candidates, sorted.
fn keep_top(candidates: &mut Vec<Candidate>, k: usize) {
    sort_top(candidates, k);
    candidates.truncate(k);
}

/// Moves the `k` most likely candidates to the front, sorted, without sorting the rest.
fn sort_top(candidates: &mut [Candidate], k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, Candidate::order);
    }
    let k = k.min(candidates.len());
    candidates[..k].sort_unstable_by(Candidate::order);
}

/// Keeps the most likely candidates with a total probability of `p`, at least one.
fn keep_mass(candidates: &mut Vec<Candidate>, p: f32) {
    let max = highest(candidates);
    let weight = |c: &Candidate| f64::from((c.logit - max).exp());
    let enough = f64::from(p) * candidates.iter().map(weight).sum::<f64>();
    // Most of the probability is usually in a few tokens of the vocabulary.
    let mut sorted = 64;
    loop {
        sort_top(candidates, sorted);
        let mut mass = 0.0;
        let end = candidates.iter().take(sorted).position(|c| {
            mass += weight(c);
            mass >= enough
        });
        if let Some(last) = end {
            return candidates.truncate(last + 1);
        }
        if sorted >= candidates.len() {
            return;
        }
        sorted *= 8;
    }
}

/// Draws by softmax(logit / temperature).
fn draw(candidates: &[Candidate], temperature: f32, rng: &mut ChaCha8Rng) -> u32 {
    let max = highest(candidates);
    let weight = |c: &Candidate| f64::from(((c.logit - max) / temperature).exp());
    let mut remaining = rng.random::<f64>() * candidates.iter().map(weight).sum::<f64>();
    let drawn = candidates.iter().find(|c| {
        remaining -= weight(c);
        remaining < 0.0
    });
    // Rounding may leave a small remainder after the last candidate.
    drawn.or(candidates.last()).map_or(0, |c| c.id)
}

fn highest(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|c| c.logit).fold(f32::MIN, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No filter, no penalty, temperature 1.
    const PLAIN: SamplingParams =
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, repeat_last_n: 64 };

    /// Returns the frequency of each id in 20,000 draws.
    fn shares(params: SamplingParams, logits: &[f32], history: &[u32]) -> Vec<f64> {
        let mut sampler = Sampler::new(params, 7);
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits, history) as usize] += 1;
        }
        counts.into_iter().map(|n| f64::from(n) / 20_000.0).collect()
    }

    fn assert_shares(params: SamplingParams, probabilities: &[f32], history: &[u32], expected: &[f64]) {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let got = shares(params.clone(), &logits, history);
        for (g, e) in got.iter().zip(expected) {
            // Within five standard deviations; excluded tokens never appear.
            assert!(
                (g - e).abs() <= 5.0 * (e * (1.0 - e) / 20_000.0).sqrt(),
                "{params:?}: {got:?} is not {expected:?}"
            );
        }
    }

    const P: [f32; 4] = [0.1, 0.4, 0.2, 0.3];

    #[test]
    fn draws_by_probability() {
        assert_shares(PLAIN, &P, &[], &[0.1, 0.4, 0.2, 0.3]);
        // Temperature 0.5 squares the weights: 1, 16, 4, 9 of 30.
        let cold = SamplingParams { temperature: 0.5, ..PLAIN };
        assert_shares(cold, &P, &[], &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
    }

    #[test]
    fn filters_keep_the_expected_tokens() {
        assert_shares(SamplingParams { top_k: 2, ..PLAIN }, &P, &[], &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        assert_shares(SamplingParams { top_k: 9, ..PLAIN }, &P, &[], &[0.1, 0.4, 0.2, 0.3]);
        assert_shares(SamplingParams { top_p: 0.65, ..PLAIN }, &P, &[], &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        assert_shares(SamplingParams { top_p: 0.75, ..PLAIN }, &P, &[], &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        assert_shares(SamplingParams { top_p: 0.0, ..PLAIN }, &P, &[], &[0.0, 1.0, 0.0, 0.0]);
        assert_shares(SamplingParams { min_p: 0.45, ..PLAIN }, &P, &[], &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        // Temperature is applied last, so it does not change which tokens top-p keeps.
        let hot = SamplingParams { top_p: 0.65, temperature: 1000.0, ..PLAIN };
        assert_shares(hot, &P, &[], &[0.0, 0.5, 0.0, 0.5]);
        // Top-p applies to what top-k keeps: 4/7 ≥ 0.5.
        assert_shares(SamplingParams { top_k: 2, top_p: 0.5, ..PLAIN }, &P, &[], &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_finds_the_mass_of_a_flat_distribution() {
        let logits = vec![0.0; 1000];
        let mut candidates: Vec<_> = logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit, id }).collect();
        keep_mass(&mut candidates, 0.7005);
        assert_eq!(candidates.iter().map(|c| c.id).collect::<Vec<_>>(), (0..701).collect::<Vec<_>>());
    }

    #[test]
    fn the_penalty_weakens_recent_tokens_once() {
        let params = SamplingParams { temperature: 0.0, repeat_penalty: 2.0, repeat_last_n: 3, ..PLAIN };
        let mut sampler = Sampler::new(params, 0);
        let logits = [2.0, 3.0, -1.0, 1.6];
        assert_eq!(sampler.sample(&logits, &[]), 1);
        assert_eq!(sampler.sample(&logits, &[1]), 0, "3 / 2 is below 2");
        assert_eq!(sampler.sample(&logits, &[1, 0, 0, 0]), 1, "three back is the limit");
        assert_eq!(sampler.sample(&[2.0, 3.9, 0.0, 0.0], &[1, 1]), 0);
        assert_eq!(sampler.sample(&[1.1, 3.0, 0.0, 0.0], &[1, 1]), 1, "twice is not weakened twice");
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0]), 1, "a negative logit is multiplied");
        assert_eq!(sampler.sample(&logits, &[99]), 1, "an id beyond the vocabulary is ignored");
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..PLAIN }, 0);
        assert_eq!(sampler.sample(&[1.0, 5.0, 5.0], &[]), 1);
        sampler.ban(1);
        assert_eq!(sampler.sample(&[1.0, 5.0, 5.0], &[]), 2);
        assert_eq!(sampler.sample(&[-0.0, 0.0], &[]), 0);
    }

    #[test]
    fn only_allowed_tokens_are_sampled() {
        let logits = [9.0, 1.0, 5.0, 3.0];
        let allowed: TokenSet = [1, 3, 999].into_iter().collect();
        let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, repeat_penalty: 1000.0, ..PLAIN }, 0);
        assert_eq!(sampler.sample_among(&logits, &allowed), 3);
        sampler.ban(3);
        assert_eq!(sampler.sample_among(&logits, &allowed), 1);
        let (mut free, mut among) = (Sampler::new(PLAIN, 7), Sampler::new(PLAIN, 7));
        let all: TokenSet = (0..4).collect();
        for _ in 0..100 {
            assert_eq!(free.sample(&logits, &[]), among.sample_among(&logits, &all), "one path for both");
            assert!(allowed.contains(among.clone().sample_among(&[f32::NAN; 4], &allowed)));
        }
    }

    #[test]
    fn nan_and_infinite_logits_are_handled() {
        let odd = [f32::NAN, f32::NEG_INFINITY, 1.0, -f32::NAN];
        for params in [PLAIN, SamplingParams::default(), SamplingParams { temperature: 0.0, ..PLAIN }] {
            let mut sampler = Sampler::new(params.clone(), 1);
            for _ in 0..100 {
                assert_eq!(sampler.sample(&odd, &[2]), 2);
                assert_eq!(sampler.sample(&[0.0, f32::INFINITY], &[]), 1);
                assert!(sampler.sample(&[f32::NAN; 3], &[0, 1]) < 3);
            }
            assert_eq!(sampler.sample(&[], &[]), 0);
        }
    }

    #[test]
    fn equal_seeds_give_equal_sequences() {
        let draws = |sampler: &mut Sampler| (0..50).map(|_| sampler.sample(&[0.0; 100], &[])).collect::<Vec<_>>();
        let mut one = Sampler::new(PLAIN, 42);
        let first = draws(&mut one);
        assert_eq!(first, draws(&mut Sampler::new(PLAIN, 42)));
        assert_ne!(first, draws(&mut Sampler::new(PLAIN, 43)));
        let mut copy = one.clone();
        let mut saved = Sampler::from_saved(&one.saved()).unwrap();
        let next = draws(&mut one);
        assert_eq!(next, draws(&mut copy));
        assert_eq!(next, draws(&mut saved));
        assert_eq!((saved.params(), saved.seed()), (&PLAIN, 42));
        one.set_seed(42);
        assert_eq!(first, draws(&mut one));
    }
}
