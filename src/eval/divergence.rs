//! How far models are from a base model, token by token of a text.

use std::sync::atomic::AtomicBool;

use super::{
    perplexity::Estimate,
    softmax::{divergence, log_sum_exp, top},
};
use crate::{Error, Result, engine::Session};

/// How a model predicts a text, beside a base model.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    /// Kullback-Leibler divergence of the base model's prediction from this one's, in nats, token by token.
    pub kl: Vec<f64>,
    /// −ln p of each token of the text.
    pub nll: Vec<f64>,
    /// The same, as the base model has it.
    pub base_nll: Vec<f64>,
    /// How often both models hold the same token for the most probable.
    pub same_top: usize,
}

impl Divergence {
    /// Mean divergence in nats a token.
    pub fn mean_kl(&self) -> Estimate {
        Estimate::of(self.kl.iter().copied())
    }

    /// The divergence that a share of `part` of the tokens does not exceed.
    pub fn kl_percentile(&self, part: f64) -> f64 {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((part * last as f64).round() as usize).copied().unwrap_or(0.0)
    }

    /// The share of tokens for which both models hold the same for the most probable.
    pub fn same_top(&self) -> Estimate {
        let n = self.kl.len().max(1) as f64;
        let mean = self.same_top as f64 / n;
        Estimate { mean, error: (mean * (1.0 - mean) / n).sqrt() }
    }

    /// Perplexity.
    pub fn perplexity(&self) -> Estimate {
        Estimate::of(self.nll.iter().copied()).exp()
    }

    /// The base model's perplexity.
    pub fn base_perplexity(&self) -> Estimate {
        Estimate::of(self.base_nll.iter().copied()).exp()
    }

    /// Perplexity divided by the base model's. The tokens that are hard for one are hard for the other, so that this is
    /// known much better than either.
    pub fn perplexity_ratio(&self) -> Estimate {
        Estimate::of(self.nll.iter().zip(&self.base_nll).map(|(a, b)| a - b)).exp()
    }
}

/// Compares each of `others` with `base` on the tokens of `ids`, all of which are predicted as by
/// [`perplexity`](super::perplexity()). The models read the text side by side, some tokens at a time, so that no more
/// logits are in memory than a session reads at once. `done` hears how many tokens were predicted.
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
                    "has a vocabulary of {size} tokens, and {} one of {vocab}: they can't be compared",
                    base.model().file()
                ),
            ));
        }
    }
    let (run, step) = (base.context() - 1, base.chunk_tokens());
    if run == 0 {
        return Err(Error::Request("a context of one token predicts nothing; it must hold at least two".into()));
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
                    // Rounding can make it a little less than nothing.
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
