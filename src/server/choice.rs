//! One of the texts that a request asked for, as it grows.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::error::{ApiError, Result};
use crate::{
    engine::{generate::StopReason, scheduler::Logprobs},
    text::Tokenizer,
};

/// A text that grows.
pub struct Choice {
    /// Ids of the prompt and the text.
    history: Vec<u32>,
    /// How many are the prompt's.
    before: usize,
    /// What was shown.
    pub text: String,
    /// Bytes of text that all tokens so far make.
    said: usize,
    /// Tokens with log probabilities whose text was not shown yet, and never will be if it becomes a stop string.
    held: VecDeque<Token>,
}

/// A token that was shown.
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Where its text begins and ends, in bytes of the text.
    pub start: usize,
    end: usize,
    /// Its log probability, and others.
    pub logprobs: Logprobs,
}

impl Choice {
    /// A text after `prompt`.
    pub fn new(prompt: &[u32]) -> Self {
        let (text, held) = (String::new(), VecDeque::new());
        Self { history: prompt.into(), before: prompt.len(), text, said: 0, held }
    }

    /// Returns the text's ids.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.before..]
    }

    /// Takes the next token, and what can be shown with it. Returns the tokens whose text was shown.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &str, logprobs: Option<Logprobs>) -> Vec<Token> {
        self.text.push_str(text);
        if let Some(logprobs) = logprobs {
            let start = self.said;
            self.said += tokenizer.stream_after(&self.history).push(id).len();
            self.held.push_back(Token { id, start, end: self.said, logprobs });
        }
        self.history.push(id);
        self.shown()
    }

    /// Takes the end of the text. Returns the tokens that belong to it and were not returned before.
    pub fn finish(&mut self, text: &str, stop: StopReason) -> Vec<Token> {
        self.text.push_str(text);
        if stop == StopReason::StopString { self.shown() } else { self.held.drain(..).collect() }
    }

    fn shown(&mut self) -> Vec<Token> {
        let shown = self.held.iter().take_while(|token| token.end <= self.text.len()).count();
        self.held.drain(..shown).collect()
    }
}

/// Returns the name of a reason to stop, or why there is none.
pub fn finish_reason(stop: StopReason) -> Result<&'static str> {
    match stop {
        StopReason::EndOfText | StopReason::StopString => Ok("stop"),
        StopReason::Limit | StopReason::ContextFull => Ok("length"),
        _ => Err(ApiError::draining()),
    }
}

/// Returns a token as text: its own, or its name if that is not text (`<0xE2>`, `<s>`).
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    match String::from_utf8(tokenizer.piece(id)) {
        Ok(text) if !text.is_empty() => text,
        _ => tokenizer.name(Some(id)),
    }
}

/// Returns a log probability that JSON can hold.
pub fn logprob(value: f32) -> Value {
    // As in OpenAI's API for what is next to impossible.
    json!(if value.is_finite() { value.max(-9999.0) } else { -9999.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::small_tokenizer;

    #[test]
    fn tokens_of_a_stop_string_are_not_shown() {
        let tokenizer = small_tokenizer();
        let some = || Some(Logprobs { logprob: -1.0, top: Vec::new() });
        let (a, b) = (260, 261);
        let mut choice = Choice::new(&[a]);
        assert_eq!(choice.push(&tokenizer, a, "a", some()).len(), 1);
        assert_eq!(choice.push(&tokenizer, b, "", some()).len(), 0, "it may be the beginning of a stop string");
        let both = choice.push(&tokenizer, a, "ba", some());
        assert_eq!(both.iter().map(|token| (token.id, token.start)).collect::<Vec<_>>(), [(b, 1), (a, 2)]);
        choice.push(&tokenizer, b, "", some());
        assert!(choice.finish("", StopReason::StopString).is_empty());
        assert_eq!((choice.ids(), &*choice.text), (&[a, b, a, b][..], "aba"));
    }

    #[test]
    fn every_token_has_a_text() {
        let tokenizer = small_tokenizer();
        let texts = [1, 3 + 0xE2, 3 + b'a' as u32, 260].map(|id| token_text(&tokenizer, id));
        assert_eq!(texts, ["<s>", "<0xE2>", "a", "a"]);
    }
}
