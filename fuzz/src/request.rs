//! Requests to a server of a small model, over an in-memory connection. For any input there is no server error, every answer is
//! complete and in OpenAI's format, and no text is running after the client has disconnected.

use std::{
    sync::{Arc, LazyLock, atomic::AtomicBool},
    thread::sleep,
    time::Duration,
};

use hymba::{
    engine::{
        Model, SessionOptions,
        scheduler::{Scheduler, SchedulerOptions},
    },
    format::{DType, gguf::Gguf},
    quant::random_weights,
    sample::SamplingParams,
    server::{Access, ChatFormat, ModelCard, Options, Server, connection, router},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::Builder,
    time::timeout,
};

use super::model::{self, Source};

/// Context size in tokens.
const CONTEXT: usize = 480;
/// Time after which the client disconnects.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Time to wait for an answer to a request that may be incomplete.
const PARTIAL_TIMEOUT: Duration = Duration::from_millis(10);
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n\
    {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static SERVER: LazyLock<Arc<Server>> = LazyLock::new(|| {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("small.gguf");
    let config = model::config(&mut Source(&[0, 0, 0, 0, 0, 0, 0, 0, 3])); // two layers, a window, 300 tokens
    random_weights(&config, "small", DType::F32, &file, &AtomicBool::new(false)).expect("a file");
    let mut gguf = Gguf::open(&file).expect("a file");
    super::constraint::set_tokenizer(&mut gguf.metadata);
    gguf.metadata.set("tokenizer.chat_template", TEMPLATE);
    let model = Model::from_gguf(gguf).expect("a model");
    let tokenizer = Arc::new(model.tokenizer().expect("a tokenizer"));
    let session = SessionOptions { context: Some(CONTEXT), threads: 1.try_into().ok(), ..SessionOptions::default() };
    let options = SchedulerOptions { session, cache_memory: Some(200_000), ..SchedulerOptions::default() };
    let chat = ChatFormat::of(&model, &tokenizer).expect("a format of chats");
    let vocab = tokenizer.vocab().min(model.config().vocab);
    let scheduler = Scheduler::start(Arc::new(model), tokenizer.clone(), &options).expect("a scheduler");
    let options = Options {
        scheduler,
        tokenizer,
        chat,
        card: ModelCard { names: vec!["small".into()], created: 1, trained_context: 64, bytes: 1 },
        context: CONTEXT,
        vocab,
        sampling: SamplingParams::default(),
        seed: Some(1),
        reply_limit: None,
        access: Access::new(&[], Some(Vec::new()), vec!["https://chat.example.org".into()]),
        stop: Arc::new(AtomicBool::new(false)),
    };
    Server::new(options).expect("a server")
});

/// Input: a letter for the route, then the body; with any other letter, all bytes that are sent over the connection.
pub fn answer(data: &[u8]) -> bool {
    let Some((&letter, rest)) = data.split_first() else { return false };
    let path = match letter {
        b'c' => "/v1/chat/completions",
        b't' => "/v1/completions",
        b'k' => "/tokenize",
        b'd' => "/detokenize",
        b'p' => "/apply-template",
        _ => return raw(rest),
    };
    // An answer to HTTP 1.0 is not chunked, and ends with the connection.
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        rest.len()
    );
    let Some(response) = exchange(&[head.as_bytes(), rest].concat(), false) else { return true };
    let response = String::from_utf8(response).expect("UTF-8");
    let (status, head, body) = parts(&response).expect("an answer");
    check_status(status, &response);
    if status == 200 && head.contains("text/event-stream") {
        let mut events = body.lines().filter_map(|line| line.strip_prefix("data: "));
        assert_eq!(events.next_back(), Some("[DONE]"), "{body}");
        events.for_each(|event| check_object(&serde_json::from_str(event).expect("JSON"), event));
    } else {
        let object: Value = serde_json::from_str(body).expect("JSON");
        check_object(&object, body);
        assert_eq!(status != 200, object["error"].is_object(), "{response}");
    }
    status == 200
}

/// Checks an answer or an event: errors have a message and are not server errors.
fn check_object(object: &Value, response: &str) {
    if let Some(error) = object.get("error") {
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{response}");
        assert!(error["type"].is_string() && error["type"] != "server_error", "{response}");
    }
}

/// Sends arbitrary bytes over a connection, which may cause several answers.
fn raw(data: &[u8]) -> bool {
    let Some(response) = exchange(data, true) else { return true };
    let response = String::from_utf8_lossy(&response); // headers may repeat bytes of the request
    match parts(&response) {
        Some((status, ..)) => {
            check_status(status, &response);
            (200..300).contains(&status)
        }
        None => {
            assert!(response.is_empty(), "{response}");
            false // the connection was closed
        }
    }
}

fn check_status(status: u16, response: &str) {
    assert!((200..500).contains(&status), "{response}");
}

/// Returns status, head and body of the first answer.
fn parts(response: &str) -> Option<(u16, &str, &str)> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, head, body))
}

/// Sends `data` over a connection and returns the response; `None` after a timeout. With `ends`, the client closes its side after
/// the first part of the response, or if there is none.
fn exchange(data: &[u8], ends: bool) -> Option<Vec<u8>> {
    let server = &*SERVER;
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let response = runtime.block_on(async {
        let (mut client, stream) = duplex(data.len().max(1 << 16));
        let send = async {
            client.write_all(data).await.ok()?;
            let mut response = Vec::new();
            if ends {
                let _ = timeout(PARTIAL_TIMEOUT, client.read_buf(&mut response)).await;
                client.shutdown().await.ok()?;
            }
            let _ = client.read_to_end(&mut response).await; // data before an error counts
            Some(response)
        };
        let serve = connection(&router(server), stream);
        timeout(ANSWER_TIMEOUT, async { tokio::join!(send, serve).0 }).await.ok().flatten()
    });
    drop(runtime); // waits for blocking tasks that parse requests
    let active = || {
        let metrics = server.scheduler.metrics();
        metrics.running + metrics.queued
    };
    while active() > 0 {
        sleep(Duration::from_micros(100));
    }
    response
}

pub fn seeds() -> Vec<Vec<u8>> {
    let ask = json!([{"role": "system", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]);
    let tool = json!({"type": "function", "function": {"name": "f", "description": "adds", "strict": true, "parameters":
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}}});
    let called = json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "5"}]);
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, null]}}, "required": ["a"],
        "additionalProperties": false});
    let posts = [
        ('c', json!({"messages": ask, "max_tokens": 3, "n": 2, "logprobs": true, "top_logprobs": 2, "user": "u"})),
        (
            'c',
            json!({"messages": ask, "max_completion_tokens": 4, "stream": true, "stop": ["a", "}"],
            "stream_options": {"include_usage": true}, "seed": 7, "temperature": 1.5, "top_p": 0.9, "top_k": 40,
            "min_p": 0.01, "repeat_penalty": 1.1, "repeat_last_n": 8}),
        ),
        (
            'c',
            json!({"messages": ask, "max_tokens": 20, "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}}}),
        ),
        ('c', json!({"messages": ask, "max_tokens": 6, "response_format": {"type": "json_object"}})),
        ('c', json!({"messages": ask, "max_tokens": 6, "tools": [tool], "tool_choice": "required", "stream": true})),
        (
            'c',
            json!({"messages": called, "max_tokens": 2, "tools": [tool], "tool_choice": "auto",
            "parallel_tool_calls": true}),
        ),
        ('t', json!({"model": "small", "prompt": "a", "max_tokens": 0, "echo": true, "logprobs": 3})),
        (
            't',
            json!({"prompt": [[1, 5, 260], [7]], "max_tokens": 2, "n": 2, "best_of": 2, "frequency_penalty": 0.5,
            "presence_penalty": -0.5, "logit_bias": {"2": -100}}),
        ),
        ('t', json!({"prompt": ["a", "é"], "stream": true, "stop": "b", "logprobs": 0})),
        ('k', json!({"content": "a <s> b", "add_special": true, "with_pieces": true})),
        ('d', json!({"tokens": [1, 5, 260]})),
        ('p', json!({"messages": called, "tools": [tool]})),
    ];
    let posts = posts.map(|(letter, body)| format!("{letter}{body}"));
    let raws = [
        "GET /v1/models HTTP/1.1\r\nHost: localhost:8080\r\nAuthorization: Bearer a\r\n\r\n",
        "GET /v1/models/small HTTP/1.1\r\nHost: [::1]:1\r\n\r\nGET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: https://chat.example.org\r\n\r\n",
        "OPTIONS /tokenize HTTP/1.1\r\nHost: localhost\r\nOrigin: https://chat.example.org\r\n\
         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n",
    ];
    posts.into_iter().chain(raws.map(|raw| format!("h{raw}"))).map(String::into_bytes).collect()
}
