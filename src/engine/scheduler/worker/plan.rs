//! Plans passes: which sequences process how many tokens, and with how many draft tokens.

use std::sync::{Arc, atomic::AtomicBool};

use super::{super::running::Running, Worker};
use crate::{engine::batch::Wanted, forward::Phase};

/// A sequence's part of a pass.
pub(super) struct Part {
    pub slot: usize,
    pub ids: Vec<u32>,
    pub phase: Phase,
    pub wanted: Wanted,
    pub cancel: Arc<AtomicBool>,
    /// The number of draft tokens at the end of `ids`; `None` if drafting was not considered.
    pub drafted: Option<usize>,
}

impl Worker<'_> {
    /// Plans the next pass: one token of each decoding sequence, and as many prompt tokens as the prefill budget allows, starting
    /// with the prompts that have waited longest.
    pub(super) fn plan(&mut self) -> Vec<Part> {
        let is_ready = |&slot: &usize| self.jobs[slot].as_ref().is_some_and(Running::is_ready);
        let slots: Vec<usize> = (0..self.jobs.len()).filter(is_ready).collect();
        let (mut prompts, written): (Vec<usize>, Vec<usize>) =
            slots.into_iter().partition(|&slot| self.jobs[slot].as_ref().is_some_and(Running::is_in_prompt));
        let mut parts: Vec<Part> = written.into_iter().filter_map(|slot| self.part(slot, usize::MAX)).collect();
        let decoded = rows(&parts);
        if prompts.is_empty() {
            self.draft(&mut parts);
            return parts;
        }
        if self.prefill_budget.is_unknown(decoded) {
            return parts;
        }
        let mut left = self.prefill_budget.rows(decoded, self.chunk);
        prompts.sort_by_key(|&slot| self.jobs[slot].as_ref().map_or(0, |job| job.turn));
        for slot in prompts {
            if let Some(part) = self.part(slot, left).filter(|_| left > 0) {
                left -= part.ids.len();
                if let Some(job) = &mut self.jobs[slot] {
                    job.turn = self.passes + 1;
                }
                parts.push(part);
            }
        }
        parts
    }

    /// Returns a sequence's part of the next pass.
    fn part(&self, slot: usize, max_prompt: usize) -> Option<Part> {
        let job = self.jobs[slot].as_ref()?;
        let next = job.next(max_prompt);
        let phase = job.steps.get(next.start)?.1;
        let wanted = match next.end == job.steps.len() {
            _ if job.wants_all_logits() => Wanted::All,
            true => Wanted::Last,
            false => Wanted::Nothing,
        };
        let ids = job.steps[next].iter().map(|step| step.0).collect();
        Some(Part { slot, ids, phase, wanted, cancel: job.job.cancel.clone(), drafted: None })
    }

    /// Adds draft tokens to the parts of generating sequences, as the policy decides.
    fn draft(&mut self, parts: &mut [Part]) {
        if !self.policy.is_on() || rows(parts) != parts.len() {
            return; // a sequence that is recomputed knows its next tokens
        }
        let draft = |part: &Part| {
            let text = &self.texts[part.slot];
            let max_draft = (text.context() - text.tokens()).saturating_sub(1);
            self.jobs[part.slot].as_mut().map_or(Vec::new(), |job| job.draft(max_draft))
        };
        let chances: Vec<Vec<f64>> = parts.iter().map(draft).collect();
        let drafts = self.policy.drafts(&chances, self.mean_depth(parts));
        for (part, drafted) in parts.iter_mut().zip(drafts) {
            let Some(job) = &self.jobs[part.slot] else { continue };
            part.ids.extend(job.drafter.ids(drafted));
            (part.drafted, part.wanted) = (Some(drafted), Wanted::All);
        }
    }

    /// Returns the mean number of tokens of the sequences.
    pub(super) fn mean_depth(&self, parts: &[Part]) -> usize {
        let tokens: usize = parts.iter().map(|part| self.texts[part.slot].tokens()).sum();
        tokens / parts.len().max(1)
    }
}

fn rows(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.ids.len()).sum()
}
