//! Perplexity.

use std::sync::atomic::AtomicBool;

use super::softmax::log_sum_exp;
use crate::{Error, Result, engine::Session};

/// A mean and its standard error, assuming independent values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
}

impl Estimate {
    /// Returns the mean of `values`; zeros if there are none.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let n = values.clone().count().max(1) as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|v| (v - mean) * (v - mean)).sum();
        Self { mean, error: (squares / (n - 1.0).max(1.0) / n).sqrt() }
    }

    /// Returns its exponential.
    pub fn exp(self) -> Self {
        let mean = self.mean.exp();
        Self { mean, error: self.error * mean }
    }
}

/// A model's predictions of a text.
#[derive(Clone, Debug, Default)]
pub struct Perplexity {
    /// −ln p of each token that was predicted.
    pub losses: Vec<f64>,
    /// Number of contexts.
    pub contexts: usize,
}

impl Perplexity {
    /// Returns the tokens that were predicted.
    pub fn predicted(&self) -> usize {
        self.losses.len()
    }

    /// Returns the mean −ln p in nats per token.
    pub fn nll(&self) -> Estimate {
        Estimate::of(self.losses.iter().copied())
    }

    /// Returns exp(mean −ln p).
    pub fn perplexity(&self) -> Estimate {
        self.nll().exp()
    }
}

/// Predicts every token of `ids`. The text is divided into consecutive runs of one token less than the session's
/// context; each run is a separate context: an empty session, `bos`, the run. `done` is called after every context.
pub fn perplexity(
    session: &mut Session<'_>,
    bos: u32,
    ids: &[u32],
    cancel: &AtomicBool,
    done: &mut dyn FnMut(&Perplexity),
) -> Result<Perplexity> {
    let run = session.context() - 1;
    if run == 0 {
        return Err(Error::Request("the context must be at least two tokens".into()));
    }
    let mut result = Perplexity::default();
    for targets in ids.chunks(run) {
        let inputs = [&[bos], &targets[..targets.len() - 1]].concat();
        session.clear()?;
        session.prefill_all(&inputs, cancel, |i, logits| {
            result.losses.push(log_sum_exp(logits) - f64::from(logits[targets[i] as usize]));
            Error::check_cancelled(cancel)
        })?;
        result.contexts += 1;
        done(&result);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_their_standard_error() {
        let estimate = Estimate::of([1.0, 2.0, 3.0, 6.0].into_iter());
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.error - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::of([5.0].into_iter()), Estimate { mean: 5.0, error: 0.0 });
    }
}
