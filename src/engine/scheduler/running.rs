//! A running job: its progress, its next input, and its output.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    mem,
    ops::Range,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    Cached, Delivery, Event, Job, Usage,
    choice::{Bias, logprobs},
    inbox::Queued,
};
use crate::{
    Error, Result,
    engine::{
        generate::{StopReason, Timings},
        generator::Generator,
        prefix::{Step, decoded},
        speculate::{Drafter, Forced},
        text::Text,
    },
    forward::{DECODE_TOKENS, Phase},
    sample::Sampler,
    text::Tokenizer,
};

/// Prompt rows per pass if log probabilities are requested: a row of logits is as wide as the vocabulary.
const ROWS_WITH_LOGITS: usize = 16;

/// A running job.
pub(super) struct Running<'t> {
    pub job: Job,
    /// `None` once the text is complete.
    text: Option<Generator<'t>>,
    sampler: Sampler,
    bias: Bias,
    /// The steps that the state consists of, followed by those to process next.
    pub steps: Vec<Step>,
    /// Number of processed steps.
    pub processed: usize,
    /// The logits after them, if known.
    pub logits: Vec<f32>,
    /// Positions at which prefill pauses so that a prefix state can be stored.
    pub cuts: Vec<usize>,
    cached: Cached,
    /// The serial number of the job.
    pub serial: u64,
    /// The job to wait for, and how many of the shared tokens it has to process first.
    pub awaits: Option<(u64, usize)>,
    is_started: bool,
    /// The pass in which its prompt last advanced.
    pub turn: u64,
    /// The slot's original state while a wider KV cache is in use.
    pub narrow: Option<Text>,
    /// Drafts its next tokens.
    pub drafter: Drafter,
    /// Whether the next pass must not verify a draft of it.
    pub is_undrafted: bool,
    /// Events that are not delivered yet.
    outbox: VecDeque<Event>,
    is_closed: bool,
    /// Number of prompt tokens whose log probabilities were reported.
    reported_prompt: usize,
    /// How and when it ended.
    pub end: Option<(End, Instant)>,
    queued: Duration,
    since: Instant,
    first: Option<Instant>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed,
    Cancelled,
}

impl<'t> Running<'t> {
    /// Returns a job that has not processed anything, or has already failed.
    pub fn new(serial: u64, tokenizer: &'t Tokenizer, queued: Queued, (vocab, context): (usize, usize)) -> Self {
        let Queued { mut job, since } = queued;
        let now = Instant::now();
        let text = Self::check(&job, vocab, context)
            .and_then(|()| Generator::new(tokenizer, job.prompt.clone(), job.limit, &job.stops));
        let matching = job.matching.take();
        let text = text.map(|mut text| {
            matching.into_iter().for_each(|matching| text.constrain(matching));
            text
        });
        let is_refused = text.is_err();
        let (text, failure) = match text {
            Ok(text) => (Some(text), None),
            Err(e) => (None, Some(Event::Failed(e))),
        };
        Self {
            sampler: Sampler::new(job.sampling.clone(), job.seed),
            bias: Bias::new(&job),
            steps: job.prompt.iter().map(|&id| (id, Phase::Prefill)).collect(),
            text,
            processed: 0,
            logits: Vec::new(),
            cuts: Vec::new(),
            cached: Cached::default(),
            serial,
            awaits: None,
            is_started: false,
            turn: 0,
            narrow: None,
            drafter: Drafter::default(),
            is_undrafted: false,
            outbox: failure.into_iter().collect(),
            is_closed: false,
            reported_prompt: 1,
            end: is_refused.then_some((End::Failed, now)),
            queued: now.saturating_duration_since(since),
            since: now,
            first: None,
            job,
        }
    }

    /// Fails if the prompt cannot be processed.
    fn check(job: &Job, vocab: usize, context: usize) -> Result<()> {
        if job.prompt.is_empty() {
            return Err(Error::Request("the prompt is empty, so there is nothing to continue".into()));
        }
        if let Some(&id) = job.prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::TokenOutOfRange { id, vocab });
        }
        let needed = job.prompt.len();
        if needed > context { Err(Error::ContextFull { needed, free: context, context }) } else { Ok(()) }
    }

    /// Starts after the `known` steps, with the logits after them if available.
    pub fn start(&mut self, known: Vec<Step>, logits: Vec<f32>, context: usize) {
        if self.is_over() {
            return;
        }
        self.cached = Cached { tokens: known.len(), decoded: decoded(&known) };
        (self.processed, self.logits, self.is_started, self.awaits) = (known.len(), logits, true, None);
        self.steps[..known.len()].copy_from_slice(&known);
        self.emit(Event::Started(self.cached.clone()));
        if self.job.prompt_logprobs {
            self.emit(Event::Prompt(vec![None]));
        }
        self.choose(context);
    }

    /// Whether the job can take part in the next pass.
    pub fn is_ready(&self) -> bool {
        self.is_started && !self.is_over() && self.is_delivered()
    }

    /// Whether a prefix state should be stored here: at the end of the prompt or at a cut.
    pub fn is_at_cut(&self) -> bool {
        self.processed > self.cached.tokens
            && (self.processed == self.job.prompt.len() || self.cuts.contains(&self.processed))
    }

    /// Whether other jobs may wait for this one's prefill.
    pub fn is_awaitable(&self) -> bool {
        self.is_in_prompt() && !self.job.prompt_logprobs && self.narrow.is_none()
    }

    /// Whether the text is complete; events may still be undelivered.
    pub fn is_over(&self) -> bool {
        self.text.is_none()
    }

    /// Whether all events are delivered.
    pub fn is_delivered(&self) -> bool {
        self.is_closed || self.outbox.is_empty()
    }

    /// Whether all steps are processed, so that the next token can be chosen.
    fn is_complete(&self) -> bool {
        self.processed == self.steps.len()
    }

    /// Whether the prompt is being processed.
    pub fn is_in_prompt(&self) -> bool {
        !self.is_over() && self.steps.get(self.processed).is_some_and(|step| step.1 == Phase::Prefill)
    }

    /// Returns the steps for the next pass, at most `max_tokens` prompt tokens.
    pub fn next(&self, max_tokens: usize) -> Range<usize> {
        let Some(&(_, phase)) = self.steps.get(self.processed) else { return self.processed..self.processed };
        let max_tokens = match phase {
            Phase::Decode => DECODE_TOKENS,
            Phase::Prefill if self.job.prompt_logprobs => max_tokens.min(ROWS_WITH_LOGITS),
            Phase::Prefill => max_tokens,
        };
        let cut = self.cuts.iter().copied().filter(|&cut| cut > self.processed).min().unwrap_or(usize::MAX);
        let same = self.steps[self.processed..].iter().take(max_tokens).take_while(|step| step.1 == phase).count();
        self.processed..(self.processed + same).min(cut)
    }

    /// Whether the logits of every prompt token are needed now.
    pub fn wants_all_logits(&self) -> bool {
        self.job.prompt_logprobs && self.text.as_ref().is_some_and(|text| text.ids().is_empty())
    }

    /// Accepts the logits of the next `tokens` steps: all rows, the last one, or none.
    pub fn accept_logits(&mut self, tokens: usize, logits: &[f32], vocab: usize) {
        let before = self.processed;
        self.processed += tokens;
        if self.wants_all_logits() {
            let known = logits.chunks(vocab).zip(self.job.prompt.iter().enumerate().skip(before + 1));
            let new = known.filter(|(_, (i, _))| *i >= self.reported_prompt);
            let top = self.job.logprobs.unwrap_or(0);
            let all: Vec<_> = new.map(|(logits, (_, &id))| Some(logprobs(logits, id, top))).collect();
            if !all.is_empty() {
                self.reported_prompt += all.len();
                self.emit(Event::Prompt(all));
            }
        }
        self.logits.clear();
        if logits.len() >= vocab {
            self.logits.extend_from_slice(&logits[logits.len() - vocab..]);
        }
        if let Some(text) = self.text.as_mut().filter(|_| self.processed == self.steps.len()) {
            text.mark_processed();
        }
    }

    /// Chooses the next token if all steps are processed, and ends the text if there is a reason to. Returns whether
    /// there is a token.
    pub fn choose(&mut self, context: usize) -> bool {
        let Some(text) = self.text.as_ref().filter(|_| self.is_complete() && !self.logits.is_empty()) else {
            return false;
        };
        let before = text.ids().len();
        self.first.get_or_insert_with(Instant::now);
        let chosen = self.try_choose(context);
        let is_longer = self.text.as_ref().is_some_and(|text| text.ids().len() > before);
        match chosen {
            Ok(None) => {}
            Ok(Some(stop)) => self.end(stop),
            Err(e) => self.fail(e),
        }
        is_longer
    }

    fn try_choose(&mut self, context: usize) -> Result<Option<StopReason>> {
        let Some(text) = &mut self.text else { return Ok(None) };
        if text.at_limit() {
            return Ok(Some(StopReason::Limit));
        }
        if self.job.cancel.load(Ordering::Relaxed) {
            return Ok(Some(StopReason::Interrupted));
        }
        let (before, mut shown) = (text.ids().len(), String::new());
        let logits = self.bias.applied(&self.logits);
        let stop = text.choose(logits, &mut self.sampler, &mut |piece| {
            shown.push_str(piece);
            Ok(())
        })?;
        let stop = match text.unprocessed() {
            Some(id) if text.ids().len() > before => {
                self.bias.count(id);
                let logprobs = self.job.logprobs.map(|top| logprobs(&self.logits, id, top));
                let stop = match stop {
                    None if text.at_limit() => Some(StopReason::Limit),
                    None if self.processed >= context => Some(StopReason::ContextFull),
                    stop => stop,
                };
                if stop.is_none() {
                    self.steps.push((id, Phase::Decode));
                }
                self.emit(Event::Token { id, text: shown, logprobs });
                stop
            }
            _ => stop,
        };
        Ok(stop)
    }

    /// Drafts the tokens after the pending one, at most `max_draft`. Returns the probability that the first of them is
    /// accepted, the first two, and so on.
    pub fn draft(&mut self, max_draft: usize) -> Vec<f64> {
        let is_single = self.processed + 1 == self.steps.len() && !mem::take(&mut self.is_undrafted);
        let Some(text) = self.text.as_mut().filter(|text| is_single && text.unprocessed().is_some()) else {
            return Vec::new();
        };
        // Every accepted draft token yields one more token.
        let max_tokens = text.left().map_or(max_draft, |left| left.saturating_sub(1).min(max_draft));
        let certain = if max_tokens > 0 { text.forced() } else { Vec::new() };
        self.drafter.read(text.history());
        self.drafter.draft(&Forced(&certain));
        self.drafter.chances(max_tokens)
    }

    /// Chooses the tokens after the pending one and its draft (`ids`) from the logits `[ids, vocab]`, up to the first
    /// that differs from the draft. Returns the number of accepted ids, the pending one included, and of chosen tokens.
    pub fn verify(&mut self, ids: &[u32], logits: &[f32], (vocab, context): (usize, usize)) -> (usize, u64) {
        let (mut accepted, mut chosen) = (0, 0);
        for logits in logits.chunks(vocab) {
            self.accept_logits(1, logits, vocab);
            chosen += u64::from(self.choose(context));
            accepted += 1;
            let next = self.text.as_ref().and_then(Generator::unprocessed);
            let is_right = next.is_some_and(|next| self.drafter.check(accepted - 1, next));
            if !is_right || accepted == ids.len() {
                break;
            }
        }
        (accepted, chosen)
    }

    /// Ends the text.
    pub fn end(&mut self, stop: StopReason) {
        let Some(text) = self.text.take() else { return };
        let end_kind = if stop == StopReason::Interrupted { End::Cancelled } else { End::Done };
        self.end = Some((end_kind, Instant::now()));
        let mut rest = String::new();
        let generated_tokens = text.ids().len();
        let done = text.finish(stop, Timings::default(), &mut |piece| {
            rest.push_str(piece);
            Ok(())
        });
        match done {
            Ok(done) => {
                let usage = self.usage(generated_tokens);
                self.emit(Event::Done { text: rest, stop: done.stop, usage });
            }
            Err(e) => self.emit_failure(e),
        }
    }

    fn emit_failure(&mut self, error: Error) {
        (self.text, self.end) = (None, Some((End::Failed, Instant::now())));
        self.emit(Event::Failed(error));
    }

    /// Ends the text with an error.
    pub fn fail(&mut self, error: Error) {
        match error {
            Error::Cancelled => self.end(StopReason::Interrupted),
            // The receiver is gone, which counts as a cancellation.
            Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => self.end(StopReason::Interrupted),
            error => self.emit_failure(error),
        }
    }

    /// Ends the text if it was cancelled.
    pub fn check_cancelled(&mut self) {
        if self.is_closed || self.job.cancel.load(Ordering::Relaxed) {
            self.end(StopReason::Interrupted);
        }
    }

    /// Whether the job can be dropped: it has ended, and after a cancellation the receiver had some time to take the
    /// last events.
    pub fn is_removable(&self, all_cancelled: bool) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        self.end.is_some_and(|(_, at)| {
            let cancelled = all_cancelled || self.job.cancel.load(Ordering::Relaxed);
            self.is_delivered() || (cancelled && at.elapsed() > PATIENCE)
        })
    }

    fn emit(&mut self, event: Event) {
        if !self.is_closed {
            self.outbox.push_back(event);
            self.deliver();
        }
    }

    /// Delivers as many events as the receiver takes.
    pub fn deliver(&mut self) {
        while let Some(event) = self.outbox.pop_front() {
            match self.job.events.deliver(event) {
                Delivery::Delivered => {}
                Delivery::Full(event) => return self.outbox.push_front(event),
                Delivery::Closed => {
                    self.outbox.clear();
                    self.is_closed = true;
                }
            }
        }
    }

    /// Returns how long the job has been running.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    fn usage(&self, generated_tokens: usize) -> Usage {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        Usage {
            prompt_tokens: self.job.prompt.len(),
            cached_tokens: self.cached.tokens,
            generated_tokens,
            queued: self.queued,
            prompt: first.saturating_duration_since(self.since),
            generation: now.saturating_duration_since(first),
        }
    }
}
