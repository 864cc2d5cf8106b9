//! The scheduler's interface: jobs, events, rejections, metrics.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use crate::{Error, constrain::Matching, engine::generate::StopReason, sample::SamplingParams};

/// A text to generate.
///
/// Its tokens are the ones that [`generate`](crate::generate) chooses for the same prompt, parameters and seed,
/// regardless of concurrent jobs. With prefix states, the first tokens of the prompt may have been processed as part of
/// another job's answer, see [`Cached`]. Several answers to one prompt are several jobs with that prompt, which is
/// processed once.
pub struct Job {
    /// The token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Maximum number of tokens; `None`: until the context is full.
    pub limit: Option<usize>,
    /// Stop strings, which do not become part of the text.
    pub stops: Vec<String>,
    /// The sampling parameters.
    pub sampling: SamplingParams,
    /// The random seed.
    pub seed: u64,
    /// Values added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// Subtracted from a token's logit for each of its occurrences in the generated text.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it occurs in the generated text.
    pub presence_penalty: f32,
    /// The constraint on the text.
    pub matching: Option<Matching>,
    /// Number of most likely tokens to report with each token and its log probability; `None`: report neither. Log
    /// probabilities are those of the model, before bias, penalties, temperature and filters.
    pub logprobs: Option<usize>,
    /// Whether to report log probabilities of the prompt's tokens too, as [`Event::Prompt`]. The whole prompt is then
    /// processed.
    pub prompt_logprobs: bool,
    /// The owner: prefixes processed for one owner are never used for another.
    pub owner: String,
    /// Cancels the job when set, within the time of one layer.
    pub cancel: Arc<AtomicBool>,
    /// Receives the events of the job.
    pub events: Box<dyn Events>,
}

impl Job {
    /// Returns a job with default parameters.
    pub fn new(prompt: Vec<u32>, events: Box<dyn Events>) -> Self {
        Self {
            prompt,
            limit: None,
            stops: Vec::new(),
            sampling: SamplingParams::default(),
            seed: 0,
            bias: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            matching: None,
            logprobs: None,
            prompt_logprobs: false,
            owner: String::new(),
            cancel: Arc::default(),
            events,
        }
    }
}

/// The events of a job, in this order: `Started`, `Prompt`s if requested, `Token`s, `Done`. `Failed` can come at any
/// time; it and `Done` are always the last event.
#[derive(Debug)]
pub enum Event {
    /// The job has left the queue.
    Started(Cached),
    /// The next tokens of the prompt, one element each. The first token has no log probability.
    Prompt(Vec<Option<Logprobs>>),
    /// A token was chosen.
    Token {
        /// Its id.
        id: u32,
        /// Text that became final since the last token: whole characters, checked for stop strings; often empty.
        text: String,
        /// Its log probability, if requested.
        logprobs: Option<Logprobs>,
    },
    /// The text is complete.
    Done {
        /// The remaining text, which was held back until now.
        text: String,
        /// Why it ended.
        stop: StopReason,
        /// Token counts and timings.
        usage: Usage,
    },
    /// The prompt could not be processed, or the text not continued.
    Failed(Error),
}

/// The part of a prompt whose state was already known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// The number of tokens, from the first one.
    pub tokens: usize,
    /// The tokens among them that were processed as part of an answer: their state differs from that of a prompt beyond
    /// the width of the sliding window.
    pub decoded: Vec<Range<usize>>,
}

/// The log probability of a token, and the most likely alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The log probability of the token.
    pub logprob: f32,
    /// Token ids with their log probabilities, the most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Token counts and timings of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those that were not processed again, see [`Cached`].
    pub cached_tokens: usize,
    /// Generated tokens, without the one that ends the text.
    pub generated_tokens: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// Time from there to the end of prefill.
    pub prompt: Duration,
    /// Time from there to the end.
    pub generation: Duration,
}

/// Receives the events of a job. It must not block, since it is called on the thread that runs the model for all jobs.
pub trait Events: Send {
    /// Delivers an event.
    fn deliver(&mut self, event: Event) -> Delivery;
}

/// The outcome of delivering an event.
#[derive(Debug)]
pub enum Delivery {
    /// The receiver has the event.
    Delivered,
    /// The receiver's queue is full. The job is suspended, and delivery is retried a few milliseconds later.
    Full(Event),
    /// The receiver was dropped: the job is cancelled.
    Closed,
}

impl Events for SyncSender<Event> {
    fn deliver(&mut self, event: Event) -> Delivery {
        match self.try_send(event) {
            Ok(()) => Delivery::Delivered,
            Err(TrySendError::Full(event)) => Delivery::Full(event),
            Err(TrySendError::Disconnected(_)) => Delivery::Closed,
        }
    }
}

/// Why a job was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full. The duration is an estimate of when there is room, from previous jobs.
    Full(Duration),
    /// The scheduler is shutting down.
    Stopping,
}

/// Counters since the start of the scheduler, and its current load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Jobs in the queue.
    pub queued: usize,
    /// Running jobs.
    pub running: usize,
    /// Maximum number of running jobs.
    pub slots: usize,
    /// Finished jobs, without failed and cancelled ones.
    pub done: u64,
    /// Failed jobs.
    pub failed: u64,
    /// Cancelled jobs.
    pub cancelled: u64,
    /// Jobs rejected because the queue was full.
    pub refused: u64,
    /// Prompt tokens that were processed.
    pub prompt_tokens: u64,
    /// Prompt tokens that were not, because their state was known.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Forward passes.
    pub passes: u64,
    /// Rows (tokens) of all passes.
    pub rows: u64,
    /// Draft tokens that were verified.
    pub drafted: u64,
    /// Draft tokens that were accepted.
    pub accepted: u64,
    /// Time in forward passes.
    pub busy: Duration,
    /// Bytes of weights and state read by passes without a prompt.
    pub decode_bytes: u64,
    /// Time in those passes.
    pub decode_time: Duration,
    /// Measured read bandwidth in bytes per second, if it was measured.
    pub read_limit: Option<f64>,
    /// Allocated bytes of state of the running jobs.
    pub text_bytes: u64,
    /// Bytes of prefix states.
    pub prefix_bytes: u64,
    /// Maximum bytes of prefix states.
    pub prefix_limit: u64,
    /// Number of prefix states.
    pub prefixes: usize,
    /// Jobs that started from a known prefix.
    pub prefix_hits: u64,
    /// Jobs that did not.
    pub prefix_misses: u64,
    /// Failed writes to the folder of prefix states.
    pub prefix_write_failures: u64,
}
