//! Perplexity: how well a model predicts a text.

use std::sync::atomic::AtomicBool;

use super::Session;
use crate::{Error, Result};

/// How a text was predicted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity {
    /// Tokens that were predicted.
    pub predicted: usize,
    /// Contexts the text was cut into.
    pub contexts: usize,
    /// Sum of −ln p over the predicted tokens.
    pub nll_sum: f64,
}

impl Perplexity {
    /// Average −ln p, in nats a token.
    pub fn nll(&self) -> f64 {
        self.nll_sum / self.predicted.max(1) as f64
    }

    /// e to the average −ln p.
    pub fn perplexity(&self) -> f64 {
        self.nll().exp()
    }
}

/// Predicts every token of `ids`. The text is cut into consecutive runs of one token less than the session's context;
/// each run is a context of its own: a fresh session, `bos`, the run. `done` hears of every context.
pub fn perplexity(
    session: &mut Session<'_>,
    bos: u32,
    ids: &[u32],
    cancel: &AtomicBool,
    done: &mut dyn FnMut(&Perplexity),
) -> Result<Perplexity> {
    let run = session.context() - 1;
    if run == 0 {
        return Err(Error::Request("a context of one token predicts nothing; --context must be at least 2".into()));
    }
    let mut result = Perplexity::default();
    for targets in ids.chunks(run) {
        let inputs = [&[bos], &targets[..targets.len() - 1]].concat();
        session.clear()?;
        session.prefill_all(&inputs, cancel, |i, logits| {
            result.nll_sum -= log_probability(logits, targets[i] as usize);
            Ok(())
        })?;
        result.predicted += targets.len();
        result.contexts += 1;
        done(&result);
    }
    Ok(result)
}

/// ln of the softmax of `logits` at `id`, in double precision.
fn log_probability(logits: &[f32], id: usize) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = logits.iter().map(|&v| f64::from(v - max).exp()).sum();
    f64::from(logits[id] - max) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_known_logits() {
        let logits = [1.0, 3.0, 2.0];
        let total: f64 = (0..3).map(|i| log_probability(&logits, i).exp()).sum();
        assert!((total - 1.0).abs() < 1e-12);
        assert!((log_probability(&logits, 1) - log_probability(&logits, 0) - 2.0).abs() < 1e-12);
    }
}
