//! The thread that owns the model: it assigns jobs to slots, runs passes and delivers events.

mod pass;
mod plan;

use std::{
    iter::repeat_with,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use super::{
    inbox::{Inbox, Queued, Stage},
    options::SchedulerOptions,
    prefill_budget::PrefillBudget,
    running::{End, Running},
};
use crate::{
    Error, Result,
    engine::{
        Batch, Model, Session, SessionOptions,
        prefix::{Folder, Found, Prefixes},
        speculate::Policy,
        text::Text,
    },
    format::CacheType,
    system::available_memory,
    text::Tokenizer,
};

/// Polling interval for receivers without room for events.
const POLL: Duration = Duration::from_millis(5);

/// Minimum number of shared, still unprocessed tokens for which one job waits for another and a state is stored where
/// their prompts diverge.
const WORTH_KEEPING: usize = 16;

/// Runs the passes.
pub(super) struct Worker<'w> {
    model: &'w Model,
    tokenizer: &'w Tokenizer,
    inbox: &'w Inbox,
    options: SessionOptions,
    batch: Batch<'w>,
    fallback: Option<String>,
    context: usize,
    cache: CacheType,
    /// Maximum number of prompt tokens in a pass.
    chunk: usize,
    texts: Vec<Text>,
    /// The job in each slot.
    jobs: Vec<Option<Running<'w>>>,
    /// Ended jobs with undelivered events.
    ended: Vec<Running<'w>>,
    /// `None` if prefix states are disabled.
    prefixes: Option<Prefixes>,
    cache_failed: fn(&Error),
    /// Decides how many draft tokens each sequence gets.
    policy: Policy,
    prefill_budget: PrefillBudget,
    passes: u64,
    serial: u64,
}

impl<'w> Worker<'w> {
    /// Opens the device and allocates the sequences.
    pub fn new(
        model: &'w Model,
        tokenizer: &'w Tokenizer,
        inbox: &'w Inbox,
        options: SchedulerOptions,
    ) -> Result<Self> {
        let SchedulerOptions {
            session: options,
            slots,
            speculate,
            cache_memory,
            cache_folder,
            cache_failed,
            measure,
            ..
        } = options;
        let mut session = Session::new(model, &options)?;
        let read_limit = measure.then(|| session.read_bandwidth(&AtomicBool::new(false))).transpose()?;
        let fallback = session.fallback().map(Error::to_string);
        let (context, cache, chunk) = (session.context(), session.cache_type(), session.chunk_tokens());
        let (mut batch, text) = session.into_parts();
        // Checked for all texts together: memory is only used once it is written to, so each allocation alone succeeds.
        let wanted = (text.bytes() as u64).saturating_mul(slots as u64);
        if let available @ Some(_) = available_memory().filter(|&available| wanted > available) {
            return Err(Error::OutOfMemory { wanted, available });
        }
        let mut texts = vec![text];
        while texts.len() < slots {
            texts.push(batch.text(context, cache)?);
        }
        let text_bytes = texts.iter().map(|text| text.bytes() as u64).sum();
        let limit = cache_memory.unwrap_or_else(|| default_cache_memory(text_bytes));
        let mut prefixes = (limit > 0).then(|| Prefixes::new(limit, phase_independent_tokens(&batch)));
        if let (Some(prefixes), Some(path)) = (&mut prefixes, &cache_folder) {
            prefixes.keep_in(Folder::open(path, model, cache)?, &mut batch)?;
        }
        let mut shared = inbox.lock();
        (shared.metrics.read_limit, shared.metrics.text_bytes) = (read_limit, text_bytes);
        shared.metrics.prefix_limit = limit as u64;
        if let Some(prefixes) = &prefixes {
            (shared.metrics.prefix_bytes, shared.metrics.prefixes) = (prefixes.bytes() as u64, prefixes.states());
        }
        drop(shared);
        let jobs = repeat_with(|| None).take(slots).collect();
        let (ended, prefill_budget) = (Vec::new(), PrefillBudget::default());
        Ok(Self {
            model,
            tokenizer,
            inbox,
            options,
            batch,
            fallback,
            context,
            cache,
            chunk,
            texts,
            jobs,
            ended,
            prefixes,
            cache_failed,
            policy: Policy::new(speculate),
            prefill_budget,
            passes: 0,
            serial: 0,
        })
    }

    /// Returns the context size of each sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns why the session differs from what was requested, if it does.
    pub fn fallback(&self) -> Option<String> {
        self.fallback.clone()
    }

    /// Runs until the inbox is shut down.
    pub fn run(&mut self) {
        loop {
            // Slots and prefix states freed here are available to the next job.
            self.deliver_events();
            self.admit();
            let parts = self.plan();
            if !parts.is_empty() {
                self.pass(&parts);
                continue;
            }
            if self.jobs.iter().any(Option::is_some) || !self.ended.is_empty() {
                self.inbox.wait(Some(POLL));
                continue;
            }
            let (is_empty, stage) = {
                let shared = self.inbox.lock();
                (shared.queue.is_empty(), shared.stage)
            };
            match stage {
                _ if !is_empty => {}
                _ if self.save_one() => {}
                Stage::Accepting => self.inbox.wait(None),
                _ => return,
            }
        }
    }

    /// Writes one prefix state to the folder while idle. After a failure, the folder is no longer used.
    fn save_one(&mut self) -> bool {
        let Some(prefixes) = &mut self.prefixes else { return false };
        prefixes.save_one(&mut self.batch).unwrap_or_else(|e| {
            self.inbox.lock().metrics.prefix_write_failures += 1;
            (self.cache_failed)(&e);
            prefixes.forget_folder();
            false
        })
    }

    /// Assigns free slots to queued jobs.
    fn admit(&mut self) {
        while let Some(slot) = self.jobs.iter().position(Option::is_none) {
            let running_jobs = |owner: &str| self.jobs.iter().flatten().filter(|job| job.job.owner == owner).count();
            let next = {
                let mut shared = self.inbox.lock();
                let next = shared.next(running_jobs);
                if let Some(next) = &next {
                    shared.running.push(next.job.cancel.clone());
                }
                next
            };
            let Some(next) = next else { return };
            self.assign(slot, next);
        }
    }

    fn assign(&mut self, slot: usize, queued: Queued) {
        self.serial += 1;
        let sizes = (self.model.config().vocab, self.context);
        let mut job = Running::new(self.serial, self.tokenizer, queued, sizes);
        job.check_cancelled();
        let awaits = self.shared_prefix_in_progress(&job);
        if let Some((serial, at)) = awaits {
            let other = self.jobs.iter_mut().flatten().find(|other| other.serial == serial);
            other.into_iter().for_each(|other| other.cuts.push(at));
        }
        job.awaits = awaits;
        let is_over = job.is_over();
        self.jobs[slot] = Some(job);
        if !is_over && awaits.is_none() {
            self.start(slot);
        }
    }

    /// Returns the running job that is about to process more of this job's prompt than is known, and how much.
    fn shared_prefix_in_progress(&self, job: &Running<'_>) -> Option<(u64, usize)> {
        let known = self.find(job)?.tokens;
        let prompt = &job.job.prompt;
        let others = self.jobs.iter().flatten();
        let awaitable = others.filter(|other| other.is_awaitable() && other.job.owner == job.job.owner);
        let shared = awaitable.filter_map(|other| {
            let common = prompt.iter().zip(&other.job.prompt).take_while(|(a, b)| a == b).count();
            let is_whole = common == prompt.len() && common == other.job.prompt.len();
            let at = if is_whole { common } else { common.min(prompt.len() - 1) };
            let is_worthwhile = at > other.processed && at >= known + if is_whole { 1 } else { WORTH_KEEPING };
            is_worthwhile.then_some((other.serial, at))
        });
        shared.max_by_key(|&(_, at)| at)
    }

    /// Returns the known prefix of a job's prompt, if it can be used.
    fn find(&self, job: &Running<'_>) -> Option<Found> {
        let is_usable = !job.is_over() && !job.job.prompt_logprobs;
        let prefixes = self.prefixes.as_ref().filter(|_| is_usable)?;
        Some(prefixes.find(&job.job.owner, &job.job.prompt))
    }

    /// Starts a job after the known prefix of its prompt.
    fn start(&mut self, slot: usize) {
        let found = self.jobs[slot].as_ref().and_then(|job| self.find(job));
        let Some(job) = &mut self.jobs[slot] else { return };
        let text = &mut self.texts[slot];
        if let Err(e) = self.batch.clear(text) {
            return job.fail(e);
        }
        let (mut known, mut logits) = Default::default();
        if let (Some(found), Some(prefixes)) = (found, &mut self.prefixes) {
            (known, logits) = prefixes.restore(&mut self.batch, text, found);
            if found.shared >= found.tokens + WORTH_KEEPING && found.shared < job.job.prompt.len() {
                job.cuts.push(found.shared);
            }
            let mut shared = self.inbox.lock();
            shared.metrics.cached_tokens += known.len() as u64;
            *(if known.is_empty() { &mut shared.metrics.prefix_misses } else { &mut shared.metrics.prefix_hits }) += 1;
        }
        job.start(known, logits, self.context);
    }

    /// Stores the state of a sequence for other jobs with the same prefix; failures are ignored.
    fn store_prefix(&mut self, slot: usize) {
        let (Some(prefixes), Some(job)) = (&mut self.prefixes, &self.jobs[slot]) else { return };
        let text = &self.texts[slot];
        if text.cache_type() == self.cache && job.processed > 0 && text.tokens() == job.processed {
            let steps = &job.steps[..job.processed];
            let _ = prefixes.insert(&mut self.batch, text, &job.job.owner, steps, &job.logits);
            let mut shared = self.inbox.lock();
            shared.metrics.prefix_bytes = prefixes.bytes() as u64;
            shared.metrics.prefixes = prefixes.states();
        }
    }

    /// Delivers events and removes ended jobs.
    fn deliver_events(&mut self) {
        for slot in 0..self.jobs.len() {
            let Some(job) = &mut self.jobs[slot] else { continue };
            job.deliver();
            job.check_cancelled();
            if job.is_over() {
                self.store_prefix(slot);
                self.release(slot);
            }
        }
        for slot in 0..self.jobs.len() {
            let awaits = self.jobs[slot].as_ref().and_then(|job| job.awaits);
            let is_pending = |(serial, at): (u64, usize)| {
                let mut others = self.jobs.iter().flatten();
                others.any(|other| other.serial == serial && !other.is_over() && other.processed < at)
            };
            if awaits.is_some_and(|awaits| !is_pending(awaits)) {
                self.start(slot);
            }
        }
        self.ended.iter_mut().for_each(Running::deliver);
        if !self.ended.is_empty() {
            let all_cancelled = self.inbox.lock().stage == Stage::Cancelled;
            self.ended.retain(|job| !job.is_removable(all_cancelled));
        }
    }

    fn release(&mut self, slot: usize) {
        let Some(mut job) = self.jobs[slot].take() else { return };
        if let Some(narrow) = job.narrow.take() {
            self.texts[slot] = narrow;
        }
        let mut shared = self.inbox.lock();
        if let Some(at) = shared.running.iter().position(|cancel| Arc::ptr_eq(cancel, &job.job.cancel)) {
            shared.running.swap_remove(at);
        }
        match job.end {
            Some((End::Failed, _)) => shared.metrics.failed += 1,
            Some((End::Cancelled, _)) => shared.metrics.cancelled += 1,
            _ => {
                shared.metrics.done += 1;
                let mean_duration = shared.mean_duration;
                shared.mean_duration =
                    if mean_duration.is_zero() { job.age() } else { (mean_duration * 7 + job.age()) / 8 };
            }
        }
        drop(shared);
        self.ended.push(job);
    }
}

/// Returns the number of leading tokens whose state does not depend on whether they were prefilled or decoded. On a GPU
/// the lowest bits always depend on it.
fn phase_independent_tokens(batch: &Batch<'_>) -> usize {
    let config = batch.model().config();
    let window = config.window.filter(|_| config.windowed.contains(&true));
    if batch.device.gpu().is_some() { 0 } else { window.unwrap_or(usize::MAX) }
}

/// Returns a quarter of the memory that remains free when the context of every sequence is full, at most 4 GB.
fn default_cache_memory(text_bytes: u64) -> usize {
    const MAX: u64 = 4_000_000_000;
    let free = available_memory().map_or(MAX, |free| free.saturating_sub(text_bytes) / 4);
    usize::try_from(free.min(MAX)).unwrap_or(0)
}
