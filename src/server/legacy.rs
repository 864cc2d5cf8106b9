//! Log probabilities as `/v1/completions` has them.

use serde_json::{Map, Value, json};

use super::choice::{Token, logprob, token_text};
use crate::{engine::scheduler::Logprobs, text::Tokenizer};

/// Log probabilities that are yet to be sent: one entry a token, of the prompt too if it is echoed.
#[derive(Default)]
pub struct LegacyLogprobs {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    /// Where the tokens begin, in characters of the text with what is echoed.
    offsets: Vec<usize>,
    /// Ids of the prompt that were taken, and characters that they make.
    prompt: (usize, usize),
    /// Bytes of the answer before the last token that was taken, and characters that they make.
    answer: (usize, usize),
}

impl LegacyLogprobs {
    /// Takes the next tokens of the prompt with the ids `ids`.
    pub fn push_prompt(&mut self, tokenizer: &Tokenizer, ids: &[u32], next: Vec<Option<Logprobs>>) {
        for logprobs in next {
            let (at, characters) = self.prompt;
            let Some(&id) = ids.get(at) else { return };
            self.entry(tokenizer, id, logprobs.as_ref(), characters);
            // The first text of a prompt loses a space that the tokenizer put in front.
            let mut stream = if at == 0 { tokenizer.stream() } else { tokenizer.stream_after(&ids[..at]) };
            self.prompt = (at + 1, characters + stream.push(id).chars().count());
        }
    }

    /// Takes the next token of the answer `text`.
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
                // Two tokens may have one text: the likelier one comes first.
                top.entry(token_text(tokenizer, id)).or_insert(logprob(value));
            }
            top
        });
        self.top.push(json!(top));
        self.offsets.push(offset);
    }

    /// Returns what was taken since the last time; `None` if that is nothing.
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
