//! The final report of `run`.

use std::{sync::atomic::AtomicBool, time::Duration};

use hymba::engine::{Model, Session, generate::Generation};
use serde_json::{Value, json};

use crate::cli::{
    json::{JSON_VERSION, speculation},
    wording::{counted, drafts, rate},
};

/// A generation and its costs.
pub struct Report<'a> {
    pub model: &'a Model,
    pub prompt: &'a str,
    /// Tokens restored from the prompt cache, if there is one.
    pub cached: Option<usize>,
    pub seed: u64,
    pub load: Duration,
    /// Time to compile the constraint.
    pub compile: Option<Duration>,
    /// Tool calls, if tools are available.
    pub calls: Option<Value>,
    pub generation: &'a Generation,
}

impl Report<'_> {
    /// Returns the object that --json prints.
    pub fn json(&self, session: &Session<'_>) -> serde_json::Value {
        let t = &self.generation.timings;
        let mut object = json!({
            "version": JSON_VERSION,
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
            "speculation": speculation(t),
            "timings": {
                "load_seconds": self.load.as_secs_f64(),
                "compile_seconds": self.compile.map(|time| time.as_secs_f64()),
                "constraint_seconds": self.compile.map(|_| t.constraint.as_secs_f64()),
                "prompt_seconds": t.prompt.as_secs_f64(),
                "prompt_tokens_per_second": t.prompt_rate(),
                "generation_seconds": t.generation.as_secs_f64(),
                "generated_tokens_per_second": t.decode_rate(),
            },
        });
        if let Some(calls) = &self.calls {
            object["tool_calls"] = calls.clone();
        }
        object
    }

    /// Returns the timing summary.
    pub fn summary(&self, session: &Session<'_>) -> String {
        let t = &self.generation.timings;
        let with_rate = |counts: String, tokens_per_second: f64| match tokens_per_second {
            0.0 => counts,
            some => format!("{counts}, {}", rate(some)),
        };
        let mut parts = vec![
            with_rate(format!("prompt {}", counted(t.prompt_tokens, "token")), t.prompt_rate()),
            with_rate(format!("generated {}", counted(t.generated_tokens, "token")), t.decode_rate()),
        ];
        parts.extend(drafts(t));
        parts.push(format!("cache {:.0} MB", session.cache_bytes() as f64 / 1e6));
        parts.push(format!("seed {}", self.seed));
        parts.join(" · ")
    }

    /// Returns the details of --verbose. Each decode pass reads the weights and the cache once, so its speed is
    /// reported as a share of the memory bandwidth, which is measured for this purpose; `cancel` interrupts that.
    pub fn details(&self, session: &mut Session<'_>, cancel: &AtomicBool) -> hymba::Result<String> {
        let t = &self.generation.timings;
        let mut parts = vec![format!("loaded in {:.0} ms", 1e3 * self.load.as_secs_f64())];
        parts.extend(self.cached.map(|tokens| format!("{} from the prompt cache", counted(tokens, "token"))));
        parts.extend(self.compile.map(|time| {
            let each = t.constraint.as_secs_f64() / t.generated_tokens.max(1) as f64;
            format!("format compiled in {:.1} ms, {:.2} ms per token", 1e3 * time.as_secs_f64(), 1e3 * each)
        }));
        parts.push(format!("stopped at {}", self.generation.stop.name().replace('_', " ")));
        if let Some(gpu) = session.gpu() {
            parts.push(format!("decode on {gpu}"));
        } else if t.decode_steps > 0 {
            let read = (self.model.weight_bytes_per_token() + session.bytes_read_per_token()) as f64;
            let (used, limit) = (read * t.decode_rate(), session.read_bandwidth(cancel)?);
            parts.push(format!("decode reads {:.1} of {:.1} GB/s", used / 1e9, limit / 1e9));
        }
        Ok(parts.join(" · "))
    }
}
