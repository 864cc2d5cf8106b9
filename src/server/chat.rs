//! `POST /v1/chat/completions`.

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
    answers::Answer,
    body, bounds,
    choice::{Choice, Token, finish_reason, logprob, token_text},
    error::{ApiError, Result},
    fields::Fields,
    messages,
    params::Params,
    prompt::Prompt,
    shape,
    sse::{StreamEvent, done, event, stream_of},
    texts::Texts,
    usage::Usage,
};
use crate::{
    engine::scheduler::{Event, Logprobs},
    text::{Call, ReplyParser, ReplyPart, Tokenizer, Tools},
};

/// A chat completion in progress.
struct Chat {
    server: Arc<Server>,
    owner: String,
    params: Params,
    prompt: Prompt,
    texts: Texts,
    replies: Vec<Reply>,
    usage: Usage,
    id: String,
    created: u64,
}

/// Answers a chat, streaming if requested.
pub async fn completions(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response> {
    let chat = body::prepare(&server, request, move |server, fields| Chat::start(server, caller, fields)).await?;
    if chat.params.stream { Ok(chat.stream().into_response()) } else { Ok(Json(chat.answer().await?).into_response()) }
}

/// Parses the parameters of a chat completion.
fn params(fields: &mut Fields, server: &Server) -> Result<Params> {
    let mut params = Params::take(fields, server)?;
    let max_tokens = fields.integer("max_completion_tokens", 1..=u32::MAX.into())?;
    let legacy_max_tokens = fields.integer("max_tokens", 1..=u32::MAX.into())?;
    if max_tokens.is_some() && legacy_max_tokens.is_some() && max_tokens != legacy_max_tokens {
        return Err(ApiError::field("max_tokens", "and max_completion_tokens are two names of one limit; give one"));
    }
    params.limit = max_tokens.or(legacy_max_tokens).or(server.reply_limit);
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=bounds::TOP_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "needs `logprobs: true`"));
    }
    params.logprobs = wanted.then(|| top.unwrap_or(0));
    for (name, harmless, reason) in [
        ("functions", json!([[]]), "this field is deprecated; use tools"),
        ("function_call", json!(["none", "auto"]), "this field is deprecated; use tool_choice"),
        ("parallel_tool_calls", json!([true, false]), "must be true or false"),
        ("modalities", json!([["text"]]), "the model answers with text only"),
        ("store", json!([false]), "answers are not stored"),
        ("service_tier", json!(["auto", "default"]), "there is one tier only: leave it out"),
        ("reasoning_effort", json!(["none"]), "the model does not reason before it answers: leave it out"),
    ] {
        fields.only(name, harmless.as_array().map_or(&[][..], |list| list), reason)?;
    }
    Ok(params)
}

impl Chat {
    /// Parses a request and starts generating.
    fn start(server: &Arc<Server>, caller: Caller, mut fields: Fields) -> Result<Self> {
        let messages = messages::take(&mut fields)?;
        let mut params = params(&mut fields, server)?;
        let format = shape::response_format(&mut fields)?;
        let (tools, choice) = shape::tools(&mut fields)?;
        fields.finish()?;
        let chat = server.chat_format()?;
        chat.check_tools(tools.as_ref())?;
        if tools.is_some() && format.is_some() {
            let problem = "cannot be combined with tools; omit one of them, or set `tool_choice: \"none\"`";
            return Err(ApiError::unsupported("response_format", problem));
        }
        params.constraint = match (&format, &tools) {
            (Some(shape), _) => Some(server.constraint(shape).map_err(|e| e.of_field("response_format"))?),
            (None, Some(tools)) => {
                server.constraint_of_calls(tools, &choice, &chat.stops).map_err(|e| e.of_field("tools"))?
            }
            (None, None) => None,
        };
        server.check_length(messages.iter().map(|message| &*message.content))?;
        let prompt = chat.prompt(&server.tokenizer, &server.answers, &caller.owner, &messages, tools.as_ref())?;
        server.check_prompt(prompt.ids.len())?;
        params.stops.extend(chat.stops.iter().cloned());

        let replies = (0..params.choices).map(|_| Reply::new(Choice::new(&prompt.ids), tools.as_ref())).collect();
        let (job, ids, owner) = (params.clone(), prompt.ids.clone(), caller.owner.clone());
        let make_job = Box::new(move |choice, port| job.job(ids.clone(), choice, &owner, port));
        let texts = Texts::start(server, params.choices, make_job)?;
        let (id, created) = (server.new_id("chatcmpl"), server.now());
        let (server, owner, usage) = (server.clone(), caller.owner, Usage::default());
        Ok(Self { server, owner, params, prompt, texts, replies, usage, id, created })
    }

    /// Returns the complete answer.
    async fn answer(mut self) -> Result<Value> {
        let mut logprobs: Vec<Vec<Value>> = vec![Vec::new(); self.replies.len()];
        let mut reasons = vec![""; self.replies.len()];
        while let Some((text, event)) = self.texts.next().await {
            let Step { tokens, reason, .. } = self.take(text, event)?;
            logprobs[text].extend(tokens);
            reasons[text] = reason.unwrap_or_default();
        }
        let wanted = self.params.logprobs.is_some();
        let choices = self.replies.iter().zip(logprobs).zip(reasons).enumerate();
        let choices = choices.map(|(index, ((reply, logprobs), reason))| {
            let logprobs = if wanted { json!({ "content": logprobs, "refusal": null }) } else { Value::Null };
            json!({ "index": index, "message": reply.message(), "logprobs": logprobs, "finish_reason": reason })
        });
        let choices: Vec<Value> = choices.collect();
        let mut answer = self.object("chat.completion", choices.into());
        answer["usage"] = self.usage.json();
        Ok(answer)
    }

    /// Returns the answer as a stream.
    fn stream(self) -> impl IntoResponse {
        let roles = (0..self.replies.len()).map(|index| {
            self.chunk(index, json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null, None)
        });
        let first: Vec<StreamEvent> = roles.map(Ok).collect();
        let rest = stream::unfold(Some(self), |chat| async move {
            let mut chat = chat?;
            let Some((text, received)) = chat.texts.next().await else { return Some((chat.last(), None)) };
            match chat.take(text, received) {
                Ok(step) => Some((chat.chunks(text, step), Some(chat))),
                Err(error) => Some((vec![Ok(event(&error.body())), Ok(done())], None)),
            }
        });
        stream_of(first, rest, bounds::PING)
    }

    /// Returns the stream events for one step.
    fn chunks(&self, index: usize, step: Step) -> Vec<StreamEvent> {
        let Step { content, calls, tokens, reason } = step;
        let mut chunks = Vec::new();
        if !content.is_empty() || !tokens.is_empty() {
            let wanted = self.params.logprobs.is_some();
            let logprobs = if wanted { json!({ "content": tokens, "refusal": null }) } else { Value::Null };
            chunks.push(self.chunk(index, json!({ "content": content }), logprobs, None));
        }
        for (number, id, call) in calls {
            // Sends the name once: clients concatenate all deltas of a call.
            let mut opening = call_json(&id, &call);
            opening["index"] = number.into();
            opening["function"]["arguments"] = "".into();
            let rest = json!({ "index": number, "function": { "arguments": call.arguments } });
            for delta in [opening, rest] {
                chunks.push(self.chunk(index, json!({ "tool_calls": [delta] }), Value::Null, None));
            }
        }
        if reason.is_some() {
            chunks.push(self.chunk(index, json!({}), Value::Null, reason));
        }
        chunks.into_iter().map(Ok).collect()
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> sse::Event {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason });
        let mut chunk = self.object("chat.completion.chunk", json!([choice]));
        if self.params.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }

    /// Returns the final stream events.
    fn last(&self) -> Vec<StreamEvent> {
        let mut last = Vec::new();
        if self.params.include_usage {
            let mut chunk = self.object("chat.completion.chunk", json!([]));
            chunk["usage"] = self.usage.json();
            last.push(Ok(event(&chunk)));
        }
        last.push(Ok(done()));
        last
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.server.model_id(),
            "system_fingerprint": self.server.fingerprint,
            "service_tier": null,
            "choices": choices,
        })
    }

    /// Handles an event of a reply and returns what it adds.
    fn take(&mut self, index: usize, event: Event) -> Result<Step> {
        let (server, reply) = (&self.server, &mut self.replies[index]);
        let tokenizer = &server.tokenizer;
        let (parts, tokens, reason) = match event {
            Event::Started(_) | Event::Prompt(_) => return Ok(Step::default()),
            Event::Token { id, text, logprobs } => {
                let tokens = reply.choice.push(tokenizer, id, &text, logprobs);
                (reply.parse(&text), tokens, None)
            }
            Event::Done { text, stop, usage } => {
                let tokens = reply.choice.finish(&text, stop);
                let parts = reply.parse_last(&text);
                self.usage.add(index == 0, &usage);
                let indented = server.chat_format()?.is_indented(&reply.choice.text);
                let answer = Answer { ids: reply.choice.ids().into(), indented };
                server.answers.remember(&self.owner, &self.prompt.text, &self.prompt.ids, answer);
                (parts, tokens, Some(finish_reason(stop)?))
            }
            Event::Failed(error) => return Err(error.into()),
        };
        let mut step = Step::default();
        for part in parts {
            match part {
                ReplyPart::Text(text) => {
                    reply.content.push_str(&text);
                    step.content.push_str(&text);
                }
                ReplyPart::Call(call) => {
                    let id = server.new_id("call");
                    step.calls.push((reply.calls.len(), id.clone(), call.clone()));
                    reply.calls.push((id, call));
                }
            }
        }
        let calls = reason == Some("stop") && !reply.calls.is_empty();
        step.reason = if calls { Some("tool_calls") } else { reason };
        step.tokens = tokens.iter().map(|token| token_json(tokenizer, token)).collect();
        Ok(step)
    }
}

/// A reply being generated.
struct Reply {
    choice: Choice,
    /// Extracts tool calls, if there are tools.
    parser: Option<ReplyParser>,
    /// The visible text.
    content: String,
    /// The tool calls and their ids.
    calls: Vec<(String, Call)>,
}

impl Reply {
    /// Returns an empty reply of a model that may call `tools`.
    fn new(choice: Choice, tools: Option<&Tools>) -> Self {
        Self { choice, parser: tools.map(ReplyParser::new), content: String::new(), calls: Vec::new() }
    }

    fn parse(&mut self, text: &str) -> Vec<ReplyPart> {
        match &mut self.parser {
            Some(parser) => parser.push(text),
            None => vec![ReplyPart::Text(text.into())],
        }
    }

    fn parse_last(&mut self, text: &str) -> Vec<ReplyPart> {
        let mut parts = self.parse(text);
        parts.extend(self.parser.take().into_iter().flat_map(ReplyParser::finish));
        parts
    }

    /// Returns the reply as a message.
    fn message(&self) -> Value {
        let content = if self.calls.is_empty() || !self.content.is_empty() { json!(self.content) } else { Value::Null };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null, "annotations": [] });
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.iter().map(|(id, call)| call_json(id, call)).collect();
        }
        message
    }
}

/// What one event adds to a reply.
#[derive(Default)]
struct Step {
    content: String,
    /// Tool calls with their indices and ids.
    calls: Vec<(usize, String, Call)>,
    tokens: Vec<Value>,
    reason: Option<&'static str>,
}

fn call_json(id: &str, call: &Call) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
}

fn token_json(tokenizer: &Tokenizer, token: &Token) -> Value {
    let one = |id: u32, value: f32| {
        let (text, bytes) = (token_text(tokenizer, id), tokenizer.piece(id));
        json!({ "token": text, "logprob": logprob(value), "bytes": bytes })
    };
    let Logprobs { logprob, top } = &token.logprobs;
    let mut json = one(token.id, *logprob);
    json["top_logprobs"] = top.iter().map(|&(id, value)| one(id, value)).collect();
    json
}
