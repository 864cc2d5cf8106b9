//! Log probabilities in the format of `/v1/completions`.

use serde_json::{Map, Value, json};

use super::choice::{Token, logprob, token_text};
use crate::{engine::scheduler::Logprobs, text::Tokenizer};

/// Unsent log probabilities: one entry per token, including echoed prompt tokens.
#[derive(Default)]
pub struct LegacyLogprobs {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    /// Start of each token, in characters including the echoed prompt.
    offsets: Vec<usize>,
    /// Number of prompt tokens so far, and of their characters.
    prompt: (usize, usize),
    /// End of the last answer token: bytes of the answer, and characters.
    answer: (usize, usize),
}

impl LegacyLogprobs {
    /// Adds prompt tokens.
    pub fn push_prompt(&mut self, tokenizer: &Tokenizer, ids: &[u32], next: Vec<Option<Logprobs>>) {
        for logprobs in next {
            let (at, characters) = self.prompt;
            let Some(&id) = ids.get(at) else { return };
            self.entry(tokenizer, id, logprobs.as_ref(), characters);
            // The tokenizer removes the space at the start of a text.
            let mut stream = if at == 0 { tokenizer.stream() } else { tokenizer.stream_after(&ids[..at]) };
            self.prompt = (at + 1, characters + stream.push(id).chars().count());
        }
    }

    /// Adds a token of the answer `text`.
    pub fn push(&mut self, tokenizer: &Tokenizer, text: &str, token: &Token) {
        let (bytes, characters) = self.answer;
        let between = text.get(bytes..token.start).map_or(0, |text| text.chars().count());
        self.answer = (token.start, characters + between);
        let offset = self.prompt.1 + self.answer.1;
        self.entry(tokenizer, token.id, Some(&token.logprobs), offset);
    }

    fn entry(&mut self, tokenizer: &Tokenizer, id: u32, logprobs: Option<&Logprobs>, offset: usize) {
        self.tokens.push(token_text(tokenizer, id));
        self.logprobs.push(logprobs.map_or(Value::Null, |logprobs| logprob(logprobs.logprob)));
        let top = logprobs.map(|logprobs| {
            let mut top = Map::new();
            for &(id, value) in &logprobs.top {
                // Of tokens with the same text, keep the likeliest.
                top.entry(token_text(tokenizer, id)).or_insert(logprob(value));
            }
            top
        });
        self.top.push(json!(top));
        self.offsets.push(offset);
    }

    /// Returns the entries since the last call, if there are any.
    pub fn json(&mut self) -> Option<Value> {
        if self.tokens.is_empty() {
            return None;
        }
        Some(json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.logprobs),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        }))
    }
}
