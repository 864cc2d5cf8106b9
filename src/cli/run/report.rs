//! What `run` reports when the text has ended.

use std::time::Duration;

use hymba::engine::{Model, Session, generate::Generation};
use serde_json::json;

/// A text, and what it took.
pub struct Report<'a> {
    pub model: &'a Model,
    pub prompt: &'a str,
    /// Tokens that the prompt cache knew, if there is one.
    pub cached: Option<usize>,
    pub seed: u64,
    pub load: Duration,
    pub generation: &'a Generation,
}

impl Report<'_> {
    /// Returns the object that --json prints.
    pub fn json(&self, session: &Session<'_>) -> serde_json::Value {
        let t = &self.generation.timings;
        json!({
            "model": self.model.file(),
            "prompt": self.prompt,
            "text": self.generation.text,
            "ids": self.generation.ids,
            "prompt_tokens": t.prompt_tokens,
            "cached_tokens": self.cached.unwrap_or_default(),
            "generated_tokens": t.generated_tokens,
            "stop_reason": self.generation.stop.name(),
            "seed": self.seed,
            "cache_bytes": session.cache_bytes(),
            "timings": {
                "load_seconds": self.load.as_secs_f64(),
                "prompt_seconds": t.prompt.as_secs_f64(),
                "prompt_tokens_per_second": t.prompt_rate(),
                "generation_seconds": t.generation.as_secs_f64(),
                "generated_tokens_per_second": t.decode_rate(),
            },
        })
    }

    /// Returns the line about speed. Each decode step reads the weights and the cache once, so its speed is told as a share
    /// of what the memory allows, which is `measured`.
    pub fn summary(&self, session: &mut Session<'_>, measured: bool) -> String {
        let t = &self.generation.timings;
        let mut parts = vec![
            format!("load {:.2} s", self.load.as_secs_f64()),
            format!("prompt {} tok, {:.1} tok/s", t.prompt_tokens, t.prompt_rate()),
        ];
        parts.extend(self.cached.map(|tokens| format!("{tokens} tok from the prompt cache")));
        let generated = format!("generated {} tok", t.generated_tokens);
        if let Some(gpu) = session.gpu() {
            parts.push(format!("{generated}, {:.1} tok/s on {gpu}", t.decode_rate()));
        } else if t.decode_steps > 0 && !measured {
            parts.push(format!("{generated}, {:.1} tok/s", t.decode_rate()));
        } else if t.decode_steps > 0 {
            let read = (self.model.weight_bytes_per_token() + session.bytes_read_per_token()) as f64;
            let limit = session.read_bandwidth();
            let share = 100.0 * read * t.decode_rate() / limit;
            parts.push(format!("{generated}, {:.1} tok/s", t.decode_rate()));
            parts.push(format!("{share:.0}% of {:.1} GB/s", limit / 1e9));
        } else {
            parts.push(generated);
        }
        parts.push(format!("cache {:.1} MB", session.cache_bytes() as f64 / 1e6));
        parts.join(" | ")
    }
}
