//! Divergence of models from a base model, token by token.

use std::sync::atomic::AtomicBool;

use super::{
    perplexity::Estimate,
    softmax::{divergence, log_sum_exp, top},
};
use crate::{Error, Result, engine::Session};

/// A model's predictions of a text, compared with a base model.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    /// KL divergence from the base model for each token, in nats.
    pub kl: Vec<f64>,
    /// −ln p of each token of the text.
    pub nll: Vec<f64>,
    /// The same for the base model.
    pub base_nll: Vec<f64>,
    /// Number of tokens on which both models' most probable token agrees.
    pub same_top: usize,
}

impl Divergence {
    /// Returns the mean divergence in nats per token.
    pub fn mean_kl(&self) -> Estimate {
        Estimate::of(self.kl.iter().copied())
    }

    /// Returns the divergence that the fraction `part` of the tokens does not exceed.
    pub fn kl_percentile(&self, part: f64) -> f64 {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((part * last as f64).round() as usize).copied().unwrap_or(0.0)
    }

    /// Returns the fraction of tokens on which the most probable token agrees.
    pub fn same_top(&self) -> Estimate {
        let n = self.kl.len().max(1) as f64;
        let mean = self.same_top as f64 / n;
        Estimate { mean, error: (mean * (1.0 - mean) / n).sqrt() }
    }

    /// Perplexity.
    pub fn perplexity(&self) -> Estimate {
        Estimate::of(self.nll.iter().copied()).exp()
    }

    /// Returns the base model's perplexity.
    pub fn base_perplexity(&self) -> Estimate {
        Estimate::of(self.base_nll.iter().copied()).exp()
    }

    /// Returns the ratio to the base model's perplexity. The models' losses are correlated, so its error is much
    /// smaller than that of either perplexity.
    pub fn perplexity_ratio(&self) -> Estimate {
        Estimate::of(self.nll.iter().zip(&self.base_nll).map(|(a, b)| a - b)).exp()
    }
}

/// Compares each of `others` with `base` on the tokens of `ids`, predicted as by [`perplexity`](super::perplexity()).
/// The models process the text in lockstep, chunk by chunk, which bounds the logits in memory. `done` receives the
/// number of predicted tokens.
pub fn diverge(
    base: &mut Session<'_>,
    others: &mut [Session<'_>],
    bos: u32,
    ids: &[u32],
    cancel: &AtomicBool,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Divergence>> {
    let vocab = base.model().config().vocab;
    for other in others.iter() {
        let (model, size) = (other.model(), other.model().config().vocab);
        if size != vocab {
            return Err(Error::format(
                model.file(),
                format!(
                    "has a vocabulary of {size} tokens, but {} has {vocab}: they cannot be compared",
                    base.model().file()
                ),
            ));
        }
    }
    let (run, step) = (base.context() - 1, base.chunk_tokens());
    if run == 0 {
        return Err(Error::Request("the context must be at least two tokens".into()));
    }
    let mut results = vec![Divergence::default(); others.len()];
    let mut logits = Vec::with_capacity(step * vocab);
    for targets in ids.chunks(run) {
        let inputs = [&[bos], &targets[..targets.len() - 1]].concat();
        base.clear()?;
        others.iter_mut().try_for_each(Session::clear)?;
        for (inputs, targets) in inputs.chunks(step).zip(targets.chunks(step)) {
            logits.clear();
            let mut facts = Vec::with_capacity(inputs.len());
            base.prefill_all(inputs, cancel, |_, token| {
                logits.extend_from_slice(token);
                facts.push((log_sum_exp(token), top(token)));
                Error::check_cancelled(cancel)
            })?;
            for (other, result) in others.iter_mut().zip(&mut results) {
                other.prefill_all(inputs, cancel, |i, token| {
                    let (base, target, (base_sum, base_top)) =
                        (&logits[i * vocab..][..vocab], targets[i] as usize, facts[i]);
                    let sum = log_sum_exp(token);
                    // Rounding can make it slightly negative.
                    result.kl.push(divergence(base, token, [base_sum, sum]).max(0.0));
                    result.nll.push(sum - f64::from(token[target]));
                    result.base_nll.push(base_sum - f64::from(base[target]));
                    result.same_top += usize::from(top(token) == base_top);
                    Error::check_cancelled(cancel)
                })?;
            }
            done(inputs.len());
        }
    }
    Ok(results)
}
