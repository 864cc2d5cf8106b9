//! Runs passes and handles their results and failures.

use std::time::{Duration, Instant};

use super::{super::prefill_budget::PrefillBudget, Worker, phase_independent_tokens, plan::Part};
use crate::{
    Error, Result,
    backend::DeviceChoice,
    engine::{Session, SessionOptions, batch::PassInput, prefix::Prefixes, text::Text},
    format::CacheType,
    forward::Phase,
};

/// The result of a pass.
#[derive(Default)]
struct Outcome {
    /// Failures of single sequences.
    failures: Vec<(usize, Error)>,
    /// Tokens chosen during verification.
    chosen: u64,
    /// The time it took to choose them.
    choosing: Duration,
    /// Draft tokens that were verified.
    drafted: u64,
    /// Draft tokens that were accepted.
    accepted: u64,
}

impl Worker<'_> {
    /// Runs a pass.
    pub(super) fn pass(&mut self, parts: &[Part]) {
        let (start, depth) = (Instant::now(), self.mean_depth(parts));
        let Outcome { failures, mut chosen, choosing, drafted, accepted } = match self.run_parts(parts) {
            Ok(outcome) => outcome,
            Err(e) => return self.handle_pass_error(e),
        };
        self.record_pass(parts, depth, start.elapsed().saturating_sub(choosing));
        for (slot, error) in failures {
            self.handle_failure(slot, error);
        }
        for part in parts {
            if self.jobs[part.slot].as_ref().is_some_and(|job| !job.is_over() && job.is_at_cut()) {
                self.store_prefix(part.slot);
            }
            if let Some(job) = &mut self.jobs[part.slot] {
                chosen += u64::from(job.choose(self.context));
            }
        }
        let mut shared = self.inbox.lock();
        shared.metrics.generated_tokens += chosen;
        shared.metrics.drafted += drafted;
        shared.metrics.accepted += accepted;
    }

    /// Runs a pass over the parts, and chooses the next tokens of parts with drafts.
    fn run_parts(&mut self, parts: &[Part]) -> Result<Outcome> {
        let (context, vocab) = (self.context, self.model.config().vocab);
        let mut texts: Vec<Option<&mut Text>> = self.texts.iter_mut().map(Some).collect();
        let inputs = parts.iter().filter_map(|part| {
            let Part { slot, ids, phase, wanted, cancel, .. } = part;
            let text = texts[*slot].take()?; // each sequence is in a pass at most once
            Some(PassInput { text, ids, phase: *phase, logits: *wanted, cancel: Some(cancel) })
        });
        let mut outcome = Outcome::default();
        let mut pass = self.batch.run(inputs)?;
        for (i, part) in parts.iter().enumerate() {
            let Some(job) = &mut self.jobs[part.slot] else { continue };
            let drafted = part.drafted.unwrap_or(0);
            outcome.drafted += drafted as u64;
            let accepted = match pass.logits(i) {
                Ok(logits) if part.drafted.is_some() => {
                    let start = Instant::now();
                    let (accepted, chosen) = job.verify(&part.ids, logits, (vocab, context));
                    outcome.accepted += accepted as u64 - 1;
                    outcome.chosen += chosen;
                    outcome.choosing += start.elapsed();
                    accepted
                }
                Ok(logits) => {
                    job.accept_logits(part.ids.len(), logits, vocab);
                    part.ids.len()
                }
                // The failure may be caused by a draft token, which a single step would not process.
                Err(_) if drafted > 0 => {
                    job.is_undrafted = true;
                    continue;
                }
                Err(e) => {
                    outcome.failures.push((part.slot, e));
                    continue;
                }
            };
            pass.commit(i, accepted);
        }
        Ok(outcome)
    }

    /// Records the time of a pass.
    fn record_pass(&mut self, parts: &[Part], depth: usize, elapsed: Duration) {
        let of = |phase| parts.iter().filter(move |part| part.phase == phase);
        let count = |phase| of(phase).map(|part| part.ids.len()).sum::<usize>();
        let (decoded, prompt) = (count(Phase::Decode), count(Phase::Prefill));
        let drafted: usize = parts.iter().filter_map(|part| part.drafted).sum();
        if prompt == 0 && decoded - drafted == parts.len() {
            self.policy.record([parts.len(), decoded], depth, elapsed);
        }
        if drafted == 0 {
            self.prefill_budget.record(decoded, prompt, elapsed);
        }
        let plan = self.model.plan();
        let cache_bytes = |part: &Part| plan.read_bytes(self.texts[part.slot].tokens(), self.cache);
        self.count([decoded, prompt], elapsed, of(Phase::Decode).map(cache_bytes).sum());
    }

    /// Counts a pass with the given number of decoded and prompt rows.
    fn count(&mut self, [decoded, prompt]: [usize; 2], elapsed: Duration, cache_bytes: u64) {
        self.passes += 1;
        let mut shared = self.inbox.lock();
        let metrics = &mut shared.metrics;
        metrics.passes += 1;
        metrics.rows += (decoded + prompt) as u64;
        metrics.busy += elapsed;
        metrics.prompt_tokens += prompt as u64;
        if prompt == 0 {
            metrics.decode_bytes += self.model.weight_bytes_per_token() + cache_bytes;
            metrics.decode_time += elapsed;
        }
    }

    /// Handles the failure of one sequence. If values exceeded the range of its KV cache type, it is reprocessed with a
    /// wider one.
    fn handle_failure(&mut self, slot: usize, error: Error) {
        let Some(job) = &mut self.jobs[slot] else { return };
        if !matches!(error, Error::CacheRange { .. }) || self.texts[slot].cache_type() == CacheType::F32 {
            return job.fail(error);
        }
        match self.batch.text(self.context, CacheType::F32) {
            Ok(wide) => {
                job.narrow = Some(std::mem::replace(&mut self.texts[slot], wide));
                (job.processed, job.logits) = (0, Vec::new());
            }
            Err(e) => job.fail(e),
        }
    }

    /// Handles a failure that affects all sequences of a pass. If the CPU can replace a failed GPU, all of them are
    /// reprocessed.
    fn handle_pass_error(&mut self, error: Error) {
        let can_fall_back = matches!(error, Error::Gpu(_)) && self.options.device == DeviceChoice::Auto;
        if can_fall_back && self.fall_back_to_cpu(&error).is_ok() {
            return;
        }
        let message = error.to_string();
        let mut first = Some(error);
        for job in self.jobs.iter_mut().flatten() {
            job.fail(first.take().unwrap_or_else(|| Error::Request(message.clone())));
        }
    }

    fn fall_back_to_cpu(&mut self, reason: &Error) -> Result<()> {
        self.options.device = DeviceChoice::Cpu;
        let options = SessionOptions { cache: self.cache, context: Some(self.context), ..self.options.clone() };
        let (mut batch, text) = Session::new(self.model, &options)?.into_parts();
        let mut texts = vec![text];
        while texts.len() < self.texts.len() {
            texts.push(batch.text(self.context, self.cache)?);
        }
        (self.batch, self.texts, self.fallback) = (batch, texts, Some(reason.to_string()));
        let limit = self.prefixes.as_ref().map(Prefixes::limit);
        self.prefixes = limit.map(|limit| Prefixes::new(limit, phase_independent_tokens(&self.batch)));
        for job in self.jobs.iter_mut().flatten() {
            (job.processed, job.logits, job.narrow) = (0, Vec::new(), None);
        }
        self.prefill_budget = PrefillBudget::default();
        self.policy.forget();
        Ok(())
    }
}
