//! `POST /v1/completions`: plain continuation of prompts.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response, sse},
};
use futures_util::stream;
use serde_json::{Value, json};

use super::{
    Server,
    access::Caller,
    body, bounds,
    choice::{Choice, finish_reason},
    error::{ApiError, Result},
    fields::{Fields, mismatch},
    legacy::LegacyLogprobs,
    params::Params,
    sse::{StreamEvent, done, event, stream_of},
    texts::Texts,
    usage::Usage,
};
use crate::engine::scheduler::{Event, Job};

/// The default of OpenAI's API.
const LIMIT: usize = 16;

/// A prompt to continue.
struct Prompt {
    text: String,
    ids: Vec<u32>,
}

/// Completions in progress.
struct Completion {
    server: Arc<Server>,
    params: Params,
    echo: bool,
    prompts: Vec<Prompt>,
    texts: Texts,
    /// The answers, in the order of the prompts.
    choices: Vec<PartialText>,
    usage: Usage,
    id: String,
    created: u64,
}

/// A text and its unsent part.
struct PartialText {
    choice: Choice,
    /// Whether the prompt was echoed, if requested.
    echoed: bool,
    text: String,
    logprobs: Option<LegacyLogprobs>,
    reason: Option<&'static str>,
}

/// Completes prompts, streaming if requested.
pub async fn completions(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response> {
    let completion =
        body::prepare(&server, request, move |server, fields| Completion::start(server, caller, fields)).await?;
    if completion.params.stream {
        Ok(completion.stream().into_response())
    } else {
        Ok(Json(completion.answer().await?).into_response())
    }
}

impl Completion {
    /// Parses a request and starts generating.
    fn start(server: &Arc<Server>, caller: Caller, mut fields: Fields) -> Result<Self> {
        let prompts = prompts(&mut fields, server)?;
        let mut params = Params::take(&mut fields, server)?;
        params.limit = Some(fields.integer("max_tokens", 0..=u32::MAX.into())?.unwrap_or(LIMIT));
        params.logprobs = fields.integer("logprobs", 0..=bounds::TOP_LOGPROBS)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        fields.only(
            "best_of",
            &[json!(1), json!(params.choices)],
            "the server generates only as many texts as it returns",
        )?;
        fields.only("suffix", &[json!("")], "the model does not support infilling")?;
        fields.finish()?;
        if prompts.len() * params.choices > bounds::PROMPTS {
            return Err(ApiError::field("n", format!("at most {} texts in total are allowed", bounds::PROMPTS)));
        }

        let partial = |prompt: &Prompt| PartialText {
            choice: Choice::new(&prompt.ids),
            echoed: !echo,
            text: String::new(),
            logprobs: params.logprobs.map(|_| LegacyLogprobs::default()),
            reason: None,
        };
        let choices = prompts.iter().flat_map(|prompt| (0..params.choices).map(move |_| partial(prompt))).collect();
        let (job, owner, prompt_logprobs) = (params.clone(), caller.owner, echo && params.logprobs.is_some());
        let ids: Vec<_> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let make_job = Box::new(move |text: usize, port| {
            let (prompt, choice) = (text / job.choices, text % job.choices);
            Job { prompt_logprobs, ..job.job(ids[prompt].clone(), choice, &owner, port) }
        });
        let texts = Texts::start(server, prompts.len() * params.choices, make_job)?;
        let (id, created) = (server.new_id("cmpl"), server.now());
        let (server, usage) = (server.clone(), Usage::default());
        Ok(Self { server, params, echo, prompts, texts, choices, usage, id, created })
    }

    async fn answer(mut self) -> Result<Value> {
        while let Some((text, event)) = self.texts.next().await {
            self.take(text, event)?;
        }
        let choices: Vec<Value> = (0..self.choices.len()).filter_map(|text| self.choice(text)).collect();
        let mut answer = self.object(choices.into());
        answer["usage"] = self.usage.json();
        Ok(answer)
    }

    fn stream(self) -> impl IntoResponse {
        let rest = stream::unfold(Some(self), |completion| async move {
            let mut completion = completion?;
            let Some((text, received)) = completion.texts.next().await else { return Some((completion.last(), None)) };
            match completion.take(text, received) {
                Ok(()) => Some((completion.chunk(text).map(Ok).into_iter().collect(), Some(completion))),
                Err(error) => Some((vec![Ok(event(&error.body())), Ok(done())], None)),
            }
        });
        stream_of(Vec::new(), rest, bounds::PING)
    }

    /// Handles an event of a text.
    fn take(&mut self, text: usize, event: Event) -> Result<()> {
        let Self { server, echo, prompts, choices, usage, params, .. } = self;
        let (tokenizer, partial) = (&server.tokenizer, &mut choices[text]);
        let prompt = &prompts[text / params.choices];
        if matches!(event, Event::Token { .. } | Event::Done { .. }) && !std::mem::replace(&mut partial.echoed, true) {
            let echoed = if partial.logprobs.is_some() { tokenizer.decode(&prompt.ids) } else { prompt.text.clone() };
            partial.text = echoed;
        }
        let tokens = match event {
            Event::Started(_) => return Ok(()),
            Event::Prompt(logprobs) => {
                if let Some(legacy) = partial.logprobs.as_mut().filter(|_| *echo) {
                    legacy.push_prompt(tokenizer, &prompt.ids, logprobs);
                }
                return Ok(());
            }
            Event::Token { id, text, logprobs } => {
                partial.text.push_str(&text);
                partial.choice.push(tokenizer, id, &text, logprobs)
            }
            Event::Done { text: rest, stop, usage: used } => {
                partial.text.push_str(&rest);
                partial.reason = Some(finish_reason(stop)?);
                usage.add(text.is_multiple_of(params.choices), &used);
                partial.choice.finish(&rest, stop)
            }
            Event::Failed(error) => return Err(error.into()),
        };
        if let Some(legacy) = &mut partial.logprobs {
            tokens.iter().for_each(|token| legacy.push(tokenizer, &partial.choice.text, token));
        }
        Ok(())
    }

    /// Returns the unsent part of a text, if there is any.
    fn choice(&mut self, text: usize) -> Option<Value> {
        let partial = &mut self.choices[text];
        if !partial.echoed {
            return None;
        }
        let piece = std::mem::take(&mut partial.text);
        let logprobs = partial.logprobs.as_mut().and_then(LegacyLogprobs::json);
        let nothing = piece.is_empty() && logprobs.is_none() && partial.reason.is_none();
        (!nothing)
            .then(|| json!({ "index": text, "text": piece, "logprobs": logprobs, "finish_reason": partial.reason }))
    }

    fn chunk(&mut self, text: usize) -> Option<sse::Event> {
        let choice = self.choice(text)?;
        let mut chunk = self.object(json!([choice]));
        if self.params.include_usage {
            chunk["usage"] = Value::Null;
        }
        Some(event(&chunk))
    }

    /// Returns the final stream events.
    fn last(&self) -> Vec<StreamEvent> {
        let mut last = Vec::new();
        if self.params.include_usage {
            let mut chunk = self.object(json!([]));
            chunk["usage"] = self.usage.json();
            last.push(Ok(event(&chunk)));
        }
        last.push(Ok(done()));
        last
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.server.model_id(),
            "system_fingerprint": self.server.fingerprint,
            "choices": choices,
        })
    }
}

/// Parses the prompts: a string, token ids, or a list of either.
fn prompts(fields: &mut Fields, server: &Server) -> Result<Vec<Prompt>> {
    let path = fields.path("prompt");
    let given = fields.value("prompt").ok_or_else(|| ApiError::missing(&path))?;
    let is_ids = |value: &Value| value.as_array().is_some_and(|list| list.first().is_some_and(Value::is_number));
    let given = match given {
        list if is_ids(&list) => vec![(path.clone(), list)],
        Value::Array(list) => list.into_iter().enumerate().map(|(i, value)| (format!("{path}[{i}]"), value)).collect(),
        one => vec![(path.clone(), one)],
    };
    if given.is_empty() || given.len() > bounds::PROMPTS {
        return Err(ApiError::field(&path, format!("must contain from 1 to {} prompts", bounds::PROMPTS)));
    }
    let prompt = |(path, value): (String, Value)| {
        let prompt = match value {
            Value::String(text) => {
                server.check_length([&*text]).map_err(|e| e.of_field(&path))?;
                let ids = server.tokenizer.encode(&text, true).map_err(|e| ApiError::from(e).of_field(&path))?;
                Prompt { text, ids }
            }
            list if is_ids(&list) => {
                let ids = ids(&path, &list, server.vocab)?;
                Prompt { text: server.tokenizer.decode(&ids), ids }
            }
            other => return Err(mismatch(&path, "a string or a list of token ids", &other)),
        };
        server.check_prompt(prompt.ids.len()).map_err(|e| e.of_field(&path))?;
        Ok(prompt)
    };
    given.into_iter().map(prompt).collect()
}

/// Parses token ids and checks that they are in the vocabulary.
pub fn ids(path: &str, list: &Value, vocab: usize) -> Result<Vec<u32>> {
    let list = list.as_array().ok_or_else(|| mismatch(path, "a list of token ids", list))?;
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab);
        id.ok_or_else(|| mismatch(&format!("{path}[{i}]"), format!("a token id from 0 to {}", vocab - 1), value))
    };
    list.iter().enumerate().map(id).collect()
}
