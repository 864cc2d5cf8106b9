//! Generation parameters that chats and completions share.

use std::sync::Arc;

use rand::{TryRng, rngs::SysRng};
use serde_json::{Value, json};

use super::{
    Server, bounds,
    error::{ApiError, Result},
    fields::{Fields, mismatch},
    texts::Port,
};
use crate::{
    constrain::Constraint,
    engine::scheduler::Job,
    limits,
    sample::{SamplingParams, Setting},
};

/// Generation parameters.
#[derive(Clone, Debug)]
pub struct Params {
    /// Whether to stream the answer.
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
    /// Number of answers per prompt.
    pub choices: usize,
    /// Maximum number of tokens per answer.
    pub limit: Option<usize>,
    /// Stop strings.
    pub stops: Vec<String>,
    /// Number of alternatives per token, if log probabilities are requested.
    pub logprobs: Option<usize>,
    /// The constraint on answers.
    pub constraint: Option<Arc<Constraint>>,
    sampling: SamplingParams,
    seed: u64,
    bias: Vec<(u32, f32)>,
    frequency_penalty: f32,
    presence_penalty: f32,
}

impl Params {
    /// Takes the shared fields; `limit` and `logprobs` have other names in each route.
    pub fn take(fields: &mut Fields, server: &Server) -> Result<Self> {
        server.check_model(fields.text("model")?)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        let choices = fields.integer("n", 1..=bounds::CHOICES)?.unwrap_or(1);
        for label in ["user", "safety_identifier", "prompt_cache_key"] {
            fields.text(label)?; // labels for records, which this server does not keep
        }
        let seed = match fields.seed("seed")?.or(server.seed) {
            Some(seed) => seed,
            None => SysRng.try_next_u64().map_err(|_| {
                ApiError::new(
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                    "the system has no source of random numbers",
                )
            })?,
        };
        Ok(Self {
            stream,
            include_usage,
            choices,
            limit: None,
            stops: stops(fields)?,
            logprobs: None,
            constraint: None,
            sampling: sampling(fields, server.sampling.clone())?,
            seed,
            bias: bias(fields, server.vocab)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
        })
    }

    /// Returns the job for answer `choice` to `prompt`. Each answer has its own seed, derived from the request's; the
    /// first one uses it directly.
    pub fn job(&self, prompt: Vec<u32>, choice: usize, owner: &str, port: Port) -> Job {
        Job {
            limit: self.limit,
            stops: self.stops.clone(),
            sampling: self.sampling.clone(),
            seed: self.seed.wrapping_add(choice as u64),
            bias: self.bias.clone(),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logprobs: self.logprobs,
            matching: self.constraint.as_ref().map(|constraint| constraint.matching()),
            owner: owner.into(),
            cancel: port.cancel(),
            ..Job::new(prompt, Box::new(port))
        }
    }
}

/// Whether a stream ends with the token counts.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool> {
    let path = fields.path("stream_options");
    let Some(value) = fields.value("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::field(&path, "is for requests with `stream: true` only"));
    }
    let mut options = Fields::of(&path, value)?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)], "answers are not padded here; leave it out")?;
    options.finish()?;
    Ok(include_usage)
}

fn stops(fields: &mut Fields) -> Result<Vec<String>> {
    let path = fields.path("stop");
    let list = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => return Err(mismatch(&path, "a string or a list of strings", &other)),
    };
    if list.len() > bounds::STOPS {
        return Err(ApiError::field(&path, format!("has {} strings; the limit is {}", list.len(), bounds::STOPS)));
    }
    let stop = |(i, value): (usize, Value)| {
        let path = format!("{path}[{i}]");
        match value {
            Value::String(text) if text.is_empty() => Err(ApiError::field(&path, "must not be empty")),
            Value::String(text) if text.len() > limits::STOP => {
                Err(ApiError::field(&path, format!("has {} bytes; the limit is {}", text.len(), limits::STOP)))
            }
            Value::String(text) => Ok(text),
            other => Err(mismatch(&path, "a string", &other)),
        }
    };
    list.into_iter().enumerate().map(stop).collect()
}

fn sampling(fields: &mut Fields, mut params: SamplingParams) -> Result<SamplingParams> {
    let names = [
        (Setting::Temperature, "temperature"),
        (Setting::TopP, "top_p"),
        (Setting::TopK, "top_k"),
        (Setting::MinP, "min_p"),
        (Setting::RepeatPenalty, "repeat_penalty"),
        (Setting::RepeatLastN, "repeat_last_n"),
    ];
    for (setting, name) in names {
        if let Some(value) = fields.number(name, f64::MIN..=f64::MAX)? {
            let refuse = |reason| ApiError::field(&fields.path(name), format!("{reason}, not {value}"));
            params.set(setting, value).map_err(refuse)?;
        }
    }
    Ok(params)
}

/// Parses the logit biases.
fn bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>> {
    let path = fields.path("logit_bias");
    let map = match fields.value("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(mismatch(&path, "an object of token ids and numbers", &other)),
    };
    let entry = |(key, value): (&String, &Value)| {
        let path = format!("{path}.{key}");
        let id = key.parse::<u32>().ok().filter(|&id| (id as usize) < vocab);
        let id =
            id.ok_or_else(|| ApiError::field(&path, format!("is not a token id: those go from 0 to {}", vocab - 1)))?;
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        Ok((id, bias.ok_or_else(|| mismatch(&path, "a number from -100 to 100", value))? as f32))
    };
    map.iter().map(entry).collect()
}
