//! An HTTP server with OpenAI's API and some routes of its own, on top of the scheduler.
//!
//! Connections exchange data with the scheduler only through bounded queues, so that a slow or faulty client delays no
//! one else. [`Access`] decides who may use the server and [`bounds`] how much they may use. Request fields are parsed
//! strictly (`fields`): whatever is not understood is rejected.

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
mod permits;
mod prompt;
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
pub use listen::{Listener, connection, serve};
use permits::Permits;
pub use prompt::ChatFormat;
pub use routes::router;

use crate::{
    constrain::{Constraint, Shape, Vocabulary},
    engine::scheduler::Scheduler,
    sample::SamplingParams,
    text::{Tokenizer, ToolChoice, Tools},
};

/// The options of a server.
pub struct Options {
    /// Runs the model.
    pub scheduler: Scheduler,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat format, if the model has one.
    pub chat: Option<ChatFormat>,
    /// Public information about the model.
    pub card: ModelCard,
    /// The context size of each text.
    pub context: usize,
    /// The vocabulary size.
    pub vocab: usize,
    /// Default sampling parameters.
    pub sampling: SamplingParams,
    /// The default seed; `None`: a random one per request.
    pub seed: Option<u64>,
    /// Default maximum number of tokens of a chat answer; `None`: until the context is full.
    pub reply_limit: Option<usize>,
    /// The access rules.
    pub access: Access,
    /// Shuts the server down when set.
    pub stop: Arc<AtomicBool>,
}

/// A server.
pub struct Server {
    options: Options,
    /// For constrained answers.
    vocabulary: Vocabulary,
    answers: Answers,
    permits: Permits,
    counters: Counters,
    fingerprint: String,
    /// Whether the server is shutting down.
    draining: AtomicBool,
    /// Counter for unique answer ids.
    ids: AtomicU64,
}

impl std::ops::Deref for Server {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

impl Server {
    /// Returns a server; [`serve`] gives it connections.
    pub fn new(options: Options) -> crate::Result<Arc<Self>> {
        let vocabulary = Vocabulary::new(&options.tokenizer)?;
        let fingerprint = format!("hymba-{}", env!("CARGO_PKG_VERSION"));
        let ids = AtomicU64::new(options.card.created << 20);
        let (answers, permits, counters) = (Answers::default(), Permits::default(), Counters::default());
        Ok(Arc::new(Self {
            options,
            vocabulary,
            answers,
            permits,
            counters,
            fingerprint,
            draining: AtomicBool::new(false),
            ids,
        }))
    }

    /// Returns the chat format, or the error that there is none.
    fn chat_format(&self) -> Result<&ChatFormat> {
        let none =
            || ApiError::bad("the model has no chat template; use /v1/completions").with_code("no_chat_template");
        self.chat.as_ref().ok_or_else(none)
    }

    /// Rejects texts that cannot fit into the context, before they are tokenized.
    fn check_length<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<()> {
        let least: usize = texts.into_iter().map(|text| self.tokenizer.least_tokens(text)).sum();
        if least < self.context { Ok(()) } else { Err(ApiError::context_length(least, self.context)) }
    }

    /// Rejects a prompt that is empty or leaves no room for an answer.
    fn check_prompt(&self, tokens: usize) -> Result<()> {
        match tokens {
            0 => Err(ApiError::bad("the prompt has no tokens; there is nothing to continue")),
            tokens if tokens >= self.context => Err(ApiError::context_length(tokens, self.context)),
            _ => Ok(()),
        }
    }

    /// Compiles the constraint `shape`.
    fn constraint(&self, shape: &Shape) -> Result<Arc<Constraint>> {
        Ok(Arc::new(Constraint::new_until(&self.vocabulary, shape, &self.stop)?))
    }

    /// Compiles the constraint of answers that may call `tools`, or must, by `choice`, and end at `stops`.
    fn constraint_of_calls(
        &self,
        tools: &Tools,
        choice: &ToolChoice,
        stops: &[String],
    ) -> Result<Option<Arc<Constraint>>> {
        Ok(Constraint::of_calls(&self.vocabulary, tools, choice, stops, &self.stop)?.map(Arc::new))
    }

    /// Returns a new answer id.
    fn new_id(&self, kind: &str) -> String {
        format!("{kind}-{:016x}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the time in seconds since 1970.
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}
