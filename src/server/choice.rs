//! One of the requested texts, as it is generated.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::error::{ApiError, Result};
use crate::{
    engine::{generate::StopReason, scheduler::Logprobs},
    text::Tokenizer,
};

/// A text being generated.
pub struct Choice {
    /// Tokens of the prompt and the text.
    history: Vec<u32>,
    /// Number of prompt tokens.
    prompt_tokens: usize,
    /// The text sent so far.
    pub text: String,
    /// Length in bytes of the text of all tokens so far.
    decoded_bytes: usize,
    /// Tokens with log probabilities whose text is not sent yet; it never will be if it becomes part of a stop string.
    held: VecDeque<Token>,
}

/// A token whose text was sent.
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Start and end of its text, in bytes.
    pub start: usize,
    end: usize,
    /// Its log probability and the alternatives.
    pub logprobs: Logprobs,
}

impl Choice {
    /// Returns an empty text after `prompt`.
    pub fn new(prompt: &[u32]) -> Self {
        let (text, held) = (String::new(), VecDeque::new());
        Self { history: prompt.into(), prompt_tokens: prompt.len(), text, decoded_bytes: 0, held }
    }

    /// Returns the token ids of the text.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.prompt_tokens..]
    }

    /// Adds a token and the text that became final with it. Returns the tokens whose text is now final.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &str, logprobs: Option<Logprobs>) -> Vec<Token> {
        self.text.push_str(text);
        if let Some(logprobs) = logprobs {
            let start = self.decoded_bytes;
            self.decoded_bytes += tokenizer.stream_after(&self.history).push(id).len();
            self.held.push_back(Token { id, start, end: self.decoded_bytes, logprobs });
        }
        self.history.push(id);
        self.take_final()
    }

    /// Adds the end of the text. Returns the remaining tokens.
    pub fn finish(&mut self, text: &str, stop: StopReason) -> Vec<Token> {
        self.text.push_str(text);
        if stop == StopReason::StopString { self.take_final() } else { self.held.drain(..).collect() }
    }

    fn take_final(&mut self) -> Vec<Token> {
        let take_final = self.held.iter().take_while(|token| token.end <= self.text.len()).count();
        self.held.drain(..take_final).collect()
    }
}

/// Returns the API's name for a stop reason; fails if the text was cancelled.
pub fn finish_reason(stop: StopReason) -> Result<&'static str> {
    match stop {
        StopReason::EndOfText | StopReason::StopString => Ok("stop"),
        StopReason::Limit | StopReason::Length | StopReason::ContextFull => Ok("length"),
        StopReason::Interrupted | StopReason::BrokenPipe => Err(ApiError::draining()),
    }
}

/// Returns the text of a token, or its name if it has no text of its own (`<0xE2>`, `<s>`).
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    match String::from_utf8(tokenizer.piece(id)) {
        Ok(text) if !text.is_empty() => text,
        _ => tokenizer.name(Some(id)),
    }
}

/// Returns a log probability as a JSON number.
pub fn logprob(value: f32) -> Value {
    // OpenAI's API uses -9999 for negligible probabilities.
    json!(if value.is_finite() { value.max(-9999.0) } else { -9999.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::small_tokenizer;

    #[test]
    fn tokens_of_a_stop_string_are_withheld() {
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
