//! What goes into a scheduler and what comes out of it: jobs, events, refusals, metrics.

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
/// Its tokens are those that [`generate`](crate::generate) chooses with the same prompt, parameters and seed, whatever else
/// is at work; with prefix states the prompt's first tokens may have been read as another text's answer, see
/// [`Cached`]. Several answers to one prompt are several jobs with this prompt: it is read once.
pub struct Job {
    /// Ids to read first; at least one.
    pub prompt: Vec<u32>,
    /// How many tokens at most; `None`: until the context is full.
    pub limit: Option<usize>,
    /// Strings that end the text when they appear in it; they do not become part of it.
    pub stops: Vec<String>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What the random numbers follow from.
    pub seed: u64,
    /// What is added to the logits of some tokens before one is chosen.
    pub bias: Vec<(u32, f32)>,
    /// What is subtracted from a token's logit for each time that it was generated.
    pub frequency_penalty: f32,
    /// What is subtracted from a token's logit if it was generated.
    pub presence_penalty: f32,
    /// What the text has to match, from its first token on.
    pub matching: Option<Matching>,
    /// How many of the most likely tokens come with each token and its log probability; `None`: nothing does. Log
    /// probabilities are the model's, before bias, penalties, temperature and filters.
    pub logprobs: Option<usize>,
    /// Whether the prompt's tokens come with log probabilities too, as [`Event::Prompt`]. All of the prompt is read then.
    pub prompt_logprobs: bool,
    /// Whose job it is: prefixes that were read for one owner are never used for another.
    pub owner: String,
    /// Ends the text when it is set: within a layer's time.
    pub cancel: Arc<AtomicBool>,
    /// Gets what happens.
    pub events: Box<dyn Events>,
}

impl Job {
    /// Returns a job with the default parameters.
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

/// What happens to a job, in this order: `Started`, `Prompt`s if they are wanted, `Token`s, `Done`. `Failed` and `Done` are
/// the last, whatever was before.
#[derive(Debug)]
pub enum Event {
    /// The job has left the queue.
    Started(Cached),
    /// The next tokens of the prompt, as many as there are elements. Nothing is known of the first token.
    Prompt(Vec<Option<Logprobs>>),
    /// A token was chosen.
    Token {
        /// Its id.
        id: u32,
        /// What can be shown since the last token: whole characters, checked for stop strings; often nothing.
        text: String,
        /// Its log probability, if those are wanted.
        logprobs: Option<Logprobs>,
    },
    /// The text is over.
    Done {
        /// What was held back until now, and can be shown.
        text: String,
        /// Why it ended.
        stop: StopReason,
        /// What it took.
        usage: Usage,
    },
    /// The text could not be read or continued.
    Failed(Error),
}

/// The part of a prompt that did not have to be read, because it was before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// How many tokens, from the first on.
    pub tokens: usize,
    /// Which of them were read as tokens of an answer: beyond the window's width their state is another than a prompt's.
    pub decoded: Vec<Range<usize>>,
}

/// The log probability of a token, and the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token's.
    pub logprob: f32,
    /// Ids and log probabilities, the most likely first.
    pub top: Vec<(u32, f32)>,
}

/// What a job took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were not read, see [`Cached`].
    pub cached_tokens: usize,
    /// Ids of the answer; the one that ends a text does not count.
    pub generated_tokens: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// Time from there until the prompt was read.
    pub prompt: Duration,
    /// Time from there to the end.
    pub generation: Duration,
}

/// Where a job's events go. It must not block: the thread that calls it runs the model for everyone.
pub trait Events: Send {
    /// Takes an event, or does not.
    fn take(&mut self, event: Event) -> Taken;
}

/// What became of an event.
#[derive(Debug)]
pub enum Taken {
    /// It was taken.
    Yes,
    /// There is no room for it now. The job waits, and the others go on; it is offered again some milliseconds later.
    Later(Event),
    /// Nobody is there any more: the job is cancelled.
    Gone,
}

impl Events for SyncSender<Event> {
    fn take(&mut self, event: Event) -> Taken {
        match self.try_send(event) {
            Ok(()) => Taken::Yes,
            Err(TrySendError::Full(event)) => Taken::Later(event),
            Err(TrySendError::Disconnected(_)) => Taken::Gone,
        }
    }
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full. There may be room after this time: the guess is from the jobs before.
    Full(Duration),
    /// The scheduler is ending.
    Stopping,
}

/// What a scheduler has done since it was started, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Jobs in the queue.
    pub queued: usize,
    /// Jobs at work.
    pub running: usize,
    /// Jobs that can be at work at once.
    pub slots: usize,
    /// Jobs that ended, but for those that failed or were cancelled.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that were refused because the queue was full.
    pub refused: u64,
    /// Tokens of prompts that were read.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were not, because their state was known.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Passes over the weights.
    pub passes: u64,
    /// Rows of all passes: tokens that were read in them.
    pub rows: u64,
    /// Guesses that were read with a token.
    pub drafted: u64,
    /// Those that were right.
    pub accepted: u64,
    /// Time in passes.
    pub busy: Duration,
    /// Bytes that passes without a prompt read from memory: weights, keys, values, states.
    pub decode_bytes: u64,
    /// Time in these passes.
    pub decode_time: Duration,
    /// Bytes a second that the threads can read, if that was measured.
    pub read_limit: Option<f64>,
    /// Bytes of keys, values and states of jobs at work: the room that there is for them.
    pub text_bytes: u64,
    /// Bytes of prefix states.
    pub prefix_bytes: u64,
    /// Bytes that prefix states may take.
    pub prefix_limit: u64,
    /// Prefix states.
    pub prefixes: usize,
    /// Jobs that began with a known prefix.
    pub prefix_hits: u64,
    /// Jobs that did not.
    pub prefix_misses: u64,
}
