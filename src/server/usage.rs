//! What a request took, in tokens.

use serde_json::{Value, json};

use crate::engine::scheduler;

/// Tokens of all texts of a request. A prompt counts once, however many answers it gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    prompt: usize,
    cached: usize,
    generated: usize,
}

impl Usage {
    /// Adds what a text took; `first`: it is the first one with its prompt.
    pub fn add(&mut self, first: bool, text: &scheduler::Usage) {
        if first {
            self.prompt += text.prompt_tokens;
            self.cached += text.cached_tokens;
        }
        self.generated += text.generated_tokens;
    }

    /// Returns the object that answers hold.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": { "cached_tokens": self.cached, "audio_tokens": 0 },
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }
}
