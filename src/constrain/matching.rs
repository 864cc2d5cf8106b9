//! Matches generated text against a constraint, token by token.

use std::{
    fmt,
    time::{Duration, Instant},
};

use llguidance::Matcher;

use super::Vocabulary;
use crate::{Error, Result, foreign, sample::TokenSet};

/// The state of matching a text against a [`Constraint`](super::Constraint).
pub struct Matching {
    matcher: Matcher,
    vocabulary: Vocabulary,
    allowed: TokenSet,
    /// Whether an end token was accepted.
    ended: bool,
    spent: Duration,
}

/// The allowed next tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// None: the text is complete.
    End,
    /// Only this token. It is not sampled, so no random number is drawn.
    Token(u32),
    /// One of these; they include the end tokens if the text may end here.
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

    /// Returns the allowed next tokens.
    pub fn next_tokens(&mut self) -> Result<Next<'_>> {
        if self.is_over() {
            return Ok(Next::End);
        }
        let mask = self.call(Matcher::compute_mask)?;
        self.allowed.copy_from(mask.as_slice());
        // A placeholder, if the model has no end token.
        self.allowed.remove(self.vocabulary.tokens);
        if self.allowed.iter().all(|id| self.vocabulary.ends.contains(&id)) {
            return Ok(Next::End);
        }
        Ok(self.allowed.only().map_or(Next::Tokens(&self.allowed), Next::Token))
    }

    /// Advances by `id`, which must be allowed.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        if self.vocabulary.ends.contains(&id) {
            self.ended = true;
            return Ok(());
        }
        self.call(|matcher| matcher.consume_token(id))
    }

    /// Returns the tokens that are known to follow; later context may lead to another tokenization.
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

    /// Whether the text matches in its current form.
    pub fn is_complete(&mut self) -> bool {
        self.is_over() || self.call(Matcher::is_accepting).unwrap_or(false)
    }

    /// Returns the time spent so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    fn call<T>(&mut self, work: impl FnOnce(&mut Matcher) -> anyhow::Result<T>) -> Result<T> {
        let (matcher, start) = (&mut self.matcher, Instant::now());
        let done = foreign::call(|| work(matcher).map_err(|e| e.to_string())).unwrap_or_else(Err);
        self.spent += start.elapsed();
        done.map_err(|reason| {
            let reason = reason.lines().next().unwrap_or_default();
            Error::Request(format!("the text can no longer be constrained by its grammar: {reason}"))
        })
    }
}
