//! Token counts of a request.

use serde_json::{Value, json};

use crate::engine::scheduler;

/// Token counts over all texts of a request. A prompt with several answers counts once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    prompt: usize,
    cached: usize,
    generated: usize,
}

impl Usage {
    /// Adds the counts of a text; `first`: it is the first answer to its prompt.
    pub fn add(&mut self, first: bool, text: &scheduler::Usage) {
        if first {
            self.prompt += text.prompt_tokens;
            self.cached += text.cached_tokens;
        }
        self.generated += text.generated_tokens;
    }

    /// Returns the counts as JSON.
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
