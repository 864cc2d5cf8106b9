//! A text as it is held against a constraint, token by token.

use std::{
    fmt,
    time::{Duration, Instant},
};

use llguidance::Matcher;

use super::Vocabulary;
use crate::{Error, Result, foreign, sample::TokenSet};

/// A text that is held against a [`Constraint`](super::Constraint) while it is generated.
pub struct Matching {
    matcher: Matcher,
    vocabulary: Vocabulary,
    allowed: TokenSet,
    /// Whether an end token came.
    ended: bool,
    spent: Duration,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing: the text is complete.
    End,
    /// This token alone. It is not chosen: no random number is drawn for it.
    Token(u32),
    /// One of these; end tokens among them, if the text may end here.
    Tokens(&'a TokenSet),
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matching")
            .field("vocabulary", &self.vocabulary)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Matching {
    pub(super) fn new(matcher: Matcher, vocabulary: Vocabulary) -> Self {
        Self { matcher, vocabulary, allowed: TokenSet::default(), ended: false, spent: Duration::ZERO }
    }

    /// Returns what may come next.
    pub fn next_tokens(&mut self) -> Result<Next<'_>> {
        if self.is_over() {
            return Ok(Next::End);
        }
        let mask = self.call(Matcher::compute_mask)?;
        self.allowed.copy_from(mask.as_slice());
        // What stands in for a model's missing end token.
        self.allowed.remove(self.vocabulary.tokens);
        if self.allowed.iter().all(|id| self.vocabulary.ends.contains(&id)) {
            return Ok(Next::End);
        }
        Ok(self.allowed.only().map_or(Next::Tokens(&self.allowed), Next::Token))
    }

    /// Goes on with `id`, which must be one that may come next.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        if self.vocabulary.ends.contains(&id) {
            self.ended = true;
            return Ok(());
        }
        self.call(|matcher| matcher.consume_token(id))
    }

    /// Returns the tokens that must come next, as far as they are known now; they may turn out to be others further on.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.is_over() {
            return Vec::new();
        }
        self.call(|matcher| Ok(matcher.compute_ff_tokens())).unwrap_or_default()
    }

    /// Whether nothing can follow.
    pub fn is_over(&self) -> bool {
        self.ended || (self.matcher.is_stopped() && !self.matcher.is_error())
    }

    /// Whether the text matches as it is.
    pub fn is_complete(&mut self) -> bool {
        self.is_over() || self.call(Matcher::is_accepting).unwrap_or(false)
    }

    /// Returns how long all this took so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    fn call<T>(&mut self, work: impl FnOnce(&mut Matcher) -> anyhow::Result<T>) -> Result<T> {
        let (matcher, start) = (&mut self.matcher, Instant::now());
        let done = foreign::call(|| work(matcher).map_err(|e| e.to_string())).unwrap_or_else(Err);
        self.spent += start.elapsed();
        done.map_err(|why| {
            let why = why.lines().next().unwrap_or_default();
            Error::Request(format!("the text cannot be held to its grammar any further: {why}"))
        })
    }
}
