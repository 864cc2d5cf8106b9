//! A server for OpenAI's HTTP API and some routes of our own, on top of the scheduler.
//!
//! Connections speak to the scheduler through bounded queues alone: what they are slow at, or get wrong, holds up nobody
//! else. [`Access`] says who may ask, [`bounds`] what they may take; a request's fields are taken one by one
//! (`fields`), so that what is not understood is refused.

mod access;
mod answers;
mod body;
pub mod bounds;
mod card;
mod chat;
mod choice;
mod completions;
mod counters;
mod error;
mod fields;
mod legacy;
mod listen;
mod messages;
mod metrics;
mod models;
mod openapi;
mod params;
mod prompt;
mod room;
mod routes;
mod shape;
mod sse;
mod stalled;
mod texts;
mod tokens;
mod usage;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

pub use access::{Access, Hints};
use answers::Answers;
pub use card::ModelCard;
use counters::Counters;
use error::{ApiError, Result};
pub use listen::{Listener, serve};
pub use prompt::ChatFormat;
use room::Room;
pub use routes::router;

use crate::{
    constrain::{Constraint, Shape, Vocabulary},
    engine::scheduler::Scheduler,
    sample::SamplingParams,
    text::Tokenizer,
};

/// What a server is set up with.
pub struct Options {
    /// What runs the model.
    pub scheduler: Scheduler,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The format of chats, if the model has one.
    pub chat: Option<ChatFormat>,
    /// What is published about the model.
    pub card: ModelCard,
    /// Tokens that a text can have.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// How tokens are chosen where a request does not say.
    pub sampling: SamplingParams,
    /// The seed of requests without one; `None`: each gets its own.
    pub seed: Option<u64>,
    /// Tokens of a chat's answer where the request does not say; `None`: until the context is full.
    pub reply_limit: Option<usize>,
    /// Who may ask.
    pub access: Access,
    /// Makes the server end when it is set.
    pub stop: Arc<AtomicBool>,
}

/// A server.
pub struct Server {
    options: Options,
    /// For answers that have to match something.
    vocabulary: Vocabulary,
    answers: Answers,
    room: Room,
    counters: Counters,
    fingerprint: String,
    /// Whether the server is about to end.
    draining: AtomicBool,
    /// What makes ids of answers differ.
    ids: AtomicU64,
}

impl std::ops::Deref for Server {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

impl Server {
    /// A server that is yet to be given connections by [`serve`].
    pub fn new(options: Options) -> crate::Result<Arc<Self>> {
        let vocabulary = Vocabulary::new(&options.tokenizer)?;
        let fingerprint = format!("hymba-{}", env!("CARGO_PKG_VERSION"));
        let ids = AtomicU64::new(options.card.created << 20);
        let (answers, room, counters) = (Answers::default(), Room::default(), Counters::default());
        Ok(Arc::new(Self {
            options,
            vocabulary,
            answers,
            room,
            counters,
            fingerprint,
            draining: AtomicBool::new(false),
            ids,
        }))
    }

    /// Returns the format of chats, or why there are none.
    fn chat_format(&self) -> Result<&ChatFormat> {
        let none =
            || ApiError::bad("the model has no chat template; use /v1/completions").with_code("no_chat_template");
        self.chat.as_ref().ok_or_else(none)
    }

    /// Refuses texts that are too long for the context, at no cost to speak of.
    fn check_length<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<()> {
        let least: usize = texts.into_iter().map(|text| self.tokenizer.least_tokens(text)).sum();
        if least < self.context { Ok(()) } else { Err(ApiError::context_length(least, self.context)) }
    }

    /// Refuses a prompt of so many tokens if it is empty, or has no room for an answer.
    fn check_prompt(&self, tokens: usize) -> Result<()> {
        match tokens {
            0 => Err(ApiError::bad("the prompt has no tokens; there is nothing to continue")),
            tokens if tokens >= self.context => Err(ApiError::context_length(tokens, self.context)),
            _ => Ok(()),
        }
    }

    /// Returns what answers have to match that are to look like `shape`.
    fn constraint(&self, shape: &Shape) -> Result<Arc<Constraint>> {
        Ok(Arc::new(Constraint::new(&self.vocabulary, shape)?))
    }

    /// Returns a new id of an answer.
    fn new_id(&self, kind: &str) -> String {
        format!("{kind}-{:016x}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the time in seconds since 1970.
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}
