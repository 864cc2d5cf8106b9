//! `hymba serve` over sockets: valid, invalid, slow and hostile clients.
#![cfg(feature = "serve")]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    thread,
    time::Duration,
};

use common::{
    fails,
    http::{Server, events, read_answer, request},
    hymba, succeeds,
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn hello() -> Value {
    json!([{ "role": "user", "content": "Hello! Who are you?" }])
}

/// A request that generates until the context is full.
fn long() -> Value {
    json!({ "prompt": "Once upon a time", "max_tokens": 100_000, "logit_bias": { "2": -100 }, "temperature": 2.0, "stream": true })
}

#[test]
fn completions_equal_the_output_of_run() {
    let server = Server::start(&[]);
    let model = common::demo_of_any_depth();
    let args = ["run", "-m", &model, "-q", "--no-display-prompt", "-n", "24", "--seed", "5", "--temp", "0.9"];
    let alone = succeeds(hymba(args).arg("Once upon a time"));
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 24, "seed": 5, "temperature": 0.9 });
    let answer = server.post(TEXT, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["choices"][0]["text"], alone.trim_end_matches('\n'));

    // Also with concurrent requests, and as a stream.
    let others: Vec<_> = (0..3).map(|_| server.begin(TEXT, &long())).collect();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let chunks = events(&server.post(TEXT, &streamed));
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, alone.trim_end_matches('\n'));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    drop(others);
}

#[test]
fn request_errors_name_the_parameter() {
    let server = Server::start(&[]);
    for (path, body, param, code) in [
        (CHAT, json!({ "messages": hello(), "no_such": 1 }), "no_such", "unknown_parameter"),
        (CHAT, json!({ "messages": hello(), "store": true }), "store", "unsupported_parameter"),
        (CHAT, json!({ "messages": [{ "role": "user" }] }), "messages[0].content", "invalid_value"),
        (CHAT, json!({ "messages": hello(), "max_tokens": 1.5 }), "max_tokens", "invalid_value"),
        (
            CHAT,
            json!({ "messages": hello(), "stream_options": { "include_usage": true } }),
            "stream_options",
            "invalid_value",
        ),
        (
            CHAT,
            json!({ "messages": hello(), "response_format": { "type": "json_schema", "json_schema": { "name": "a",
            "schema": { "type": "objekt" } } } }),
            "response_format",
            "",
        ),
        (TEXT, json!({ "prompt": "a", "echo": "yes" }), "echo", "invalid_value"),
        (TEXT, json!({ "prompt": [[1, 2], ["a"]] }), "prompt[1]", "invalid_value"),
        (TEXT, json!({ "prompt": "a", "top_p": 7 }), "top_p", "invalid_value"),
        (TEXT, json!({}), "prompt", "invalid_value"),
        ("/tokenize", json!({ "content": "a", "b": 1 }), "b", "unknown_parameter"),
        ("/detokenize", json!({ "tokens": [-1] }), "tokens[0]", "invalid_value"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        let (got_param, got_code, message) = answer.error();
        assert_eq!((&*got_param, code.is_empty() || code == got_code), (param, true), "{body}: {answer:?}");
        assert!(message.contains(param), "{message}");
    }
    let words = "word ".repeat(30_000);
    let answer = server.post(CHAT, &json!({ "messages": [{ "role": "user", "content": words }] }));
    let (_, code, message) = answer.error();
    assert_eq!((answer.status, &*code), (400, "context_length_exceeded"), "{message}");
    assert!(message.contains("1024 tokens"), "{message}");
    let answer = server.post(CHAT, &json!({ "messages": hello(), "model": "gpt-4o" }));
    assert_eq!((answer.status, answer.error().1.as_str()), (404, "model_not_found"));
    assert_eq!(server.get("/v1/nothing", &[]).error().1, "unknown_path");
    assert!(
        server
            .post("/chat/completions", &json!({}))
            .error()
            .2
            .ends_with("unknown path /chat/completions; did you mean /v1/chat/completions?")
    );
    assert_eq!(server.get(CHAT, &[]).status, 405);
}

#[test]
fn malformed_requests_are_rejected() {
    let server = Server::start(&[]);
    let json = [("Content-Type", "application/json")];
    for (body, reason) in [
        ("{\"messages\": [", "not JSON"),
        ("[]", "must be a JSON object"),
        ("", "not JSON"),
        (&*"[".repeat(100_000), "is nested more than 127 levels deep"),
    ] {
        let answer = server.raw(request("POST", CHAT, &json, body).as_bytes());
        assert_eq!(answer.status, 400);
        assert!(answer.error().2.contains(reason), "{answer:?}");
    }
    let mut wrong = request("POST", CHAT, &json, "{\"messages\": \"??\"}").into_bytes();
    let end = wrong.len();
    wrong[end - 4..end - 2].copy_from_slice(&[0xC3, 0x28]);
    let answer = server.raw(&wrong);
    assert!(answer.status == 400 && answer.error().2.contains("not UTF-8 from byte"), "{answer:?}");

    assert_eq!(server.raw(b"hello\r\n\r\n").status, 400);
    let many: Vec<_> = (0..500).map(|i| format!("x-{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&**name, "a")).collect();
    assert_eq!(server.get("/health", &many).status, 431);
    assert_eq!(server.get("/health", &[("x", &"a".repeat(100_000))]).status, 431);

    // A body of a gigabyte is refused, with and without Content-Length.
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let answer = server.raw(format!("{head}Content-Length: 1073741824\r\n\r\n{{").as_bytes());
    assert_eq!((answer.status, answer.error().1.as_str()), (413, "body_too_large"));
    let mut stream = server.connect();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let part = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    for _ in 0..1024 {
        if stream.write_all(part.as_bytes()).is_err() {
            break;
        }
    }
    let answer = read_answer(stream);
    assert_eq!((answer.status, answer.error().1.as_str()), (413, "body_too_large"));
    #[cfg(target_os = "linux")]
    assert!(server.peak_memory() < 700 << 20, "{}", server.peak_memory());
    assert_eq!(server.get("/health", &[]).status, 200);
}

#[test]
fn a_disconnect_cancels_the_text() {
    let server = Server::start(&["--parallel", "2"]);
    for stream in [true, false] {
        let mut body = long();
        body["stream"] = stream.into();
        let client = server.begin(TEXT, &body);
        server.wait_for("sequences_running", |running| running == 1.0);
        drop(client);
        // Within 0.2 s by design; several times as long under load.
        let took = server.wait_for("sequences_running", |running| running == 0.0);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    assert_eq!(server.metric("sequences_total{outcome=\"cancelled\"}"), 2.0);
    assert_eq!(server.post(TEXT, &json!({ "prompt": "a", "max_tokens": 1 })).status, 200);
}

#[test]
fn a_full_queue_returns_429_with_retry_after() {
    let server = Server::start(&["--parallel", "1", "--queue", "1"]);
    let _running = server.begin(TEXT, &long());
    server.wait_for("sequences_running", |running| running == 1.0);
    let _queued = server.begin(TEXT, &long());
    server.wait_for("sequences_queued", |queued| queued == 1.0);
    let answer = server.post(TEXT, &json!({ "prompt": "a" }));
    assert_eq!((answer.status, answer.error().1.as_str()), (429, "queue_full"));
    assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
}

#[test]
fn a_slow_reader_does_not_block_other_clients() {
    let server = Server::start(&["--parallel", "1"]);
    let mut slow = long();
    slow["logprobs"] = 20.into(); // more than the system's buffers hold
    let _slow = server.begin(TEXT, &slow);
    server.wait_for("sequences_running", |running| running == 1.0);
    let answer = server.post(TEXT, &json!({ "prompt": "a", "max_tokens": 2 }));
    assert_eq!(answer.status, 200, "the text ends although the client does not read it: {answer:?}");
}

#[test]
fn partial_stop_strings_are_never_streamed() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 40 });
    let whole = server.post(TEXT, &body).json()["choices"][0]["text"].as_str().unwrap().to_owned();
    for start in [3, 8, 14] {
        let stop: String = whole.chars().skip(start).take(7).collect();
        let before = whole.split(&stop).next().unwrap();
        let request =
            json!({ "prompt": "Once upon a time", "max_tokens": 40, "stop": ["\u{2603}", stop], "stream": true });
        let chunks = events(&server.post(TEXT, &request));
        let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, before);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn a_truncated_json_answer_has_finish_reason_length() {
    let server = Server::start(&[]);
    let mut body = json!({ "messages": hello(), "max_tokens": 2, "response_format": { "type": "json_object" } });
    for stream in [false, true] {
        body["stream"] = stream.into();
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let last = if stream { events(&answer).pop().unwrap() } else { answer.json() };
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{answer:?}");
    }
}

#[test]
fn streamed_and_whole_chat_answers_are_equal() {
    let server = Server::start(&[]);
    let mut body = json!({ "messages": hello(), "max_tokens": 20, "logprobs": true, "top_logprobs": 1 });
    let whole = server.post(CHAT, &body).json();
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let chunks = events(&server.post(CHAT, &body));
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    let text: String = deltas.iter().filter_map(|delta| delta["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let logprobs: Vec<Value> =
        deltas.iter().filter_map(|delta| delta["logprobs"]["content"].as_array()).flatten().cloned().collect();
    assert_eq!(whole["choices"][0]["logprobs"]["content"], Value::from(logprobs));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
}

#[test]
fn a_returned_answer_keeps_its_token_ids() {
    let server = Server::start(&[]);
    let body = json!({ "messages": hello(), "max_tokens": 8, "temperature": 1.5, "seed": 3 });
    let first = server.post(CHAT, &body).json();
    let mut messages = hello();
    messages
        .as_array_mut()
        .unwrap()
        .extend([first["choices"][0]["message"].clone(), json!({ "role": "user", "content": "Go on." })]);
    let second = server.post(CHAT, &json!({ "messages": messages, "max_tokens": 4 })).json();
    let tokens = |answer: &Value, what: &str| answer["usage"][what].as_u64().unwrap();
    let processed = tokens(&first, "prompt_tokens") + tokens(&first, "completion_tokens");
    assert!(tokens(&second, "prompt_tokens") > processed, "{second}");
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > tokens(&first, "prompt_tokens"), "{second}");
}

#[test]
fn cached_prefixes_are_not_shared_between_keys() {
    let server = Server::start(&["--api-key", "alpha", "--api-key", "beta"]);
    let cached = |key: &str| {
        let key = format!("Bearer {key}");
        let body = json!({ "messages": hello(), "max_tokens": 2 });
        let answer = server.post_with(CHAT, &[("Authorization", &key)], &body).json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("alpha"), 0);
    assert!(cached("alpha") > 0);
    assert_eq!(cached("beta"), 0);
}

#[test]
fn connections_that_never_finish_a_request_are_closed() {
    let server = Server::start(&[]);
    let slow: Vec<_> = (0..256)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: local").unwrap();
            stream
        })
        .collect();
    // Other connections get status 503 until the slow ones time out.
    let start = std::time::Instant::now();
    let mut statuses = Vec::new();
    while statuses.last() != Some(&200) {
        assert!(start.elapsed() < Duration::from_secs(60), "{statuses:?}");
        statuses.push(server.get("/health", &[]).status);
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(statuses[0], 503);
    drop(slow);
}

#[test]
fn message_content_never_becomes_special_tokens() {
    let server = Server::start(&[]);
    let tokens = |content: &str| {
        let body = json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 1 });
        server.post(CHAT, &body).json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let base = tokens("a");
    // As the BOS token it would be only one more.
    assert!(tokens("a <s>") > base + 1, "{} {base}", tokens("a <s>"));
}

#[test]
fn tool_calls_match_their_schemas() {
    if common::runner().is_some() {
        return; // only the whole demo calls tools, not its first layers
    }
    let server = Server::start(&[]);
    let weather = |city: Value| {
        json!([{ "type": "function", "function": { "name": "get_weather", "description": "Get the weather in a city",
            "parameters": { "type": "object", "properties": { "city": city }, "required": ["city"],
                "additionalProperties": false } } }])
    };
    let ask = |tools: Value, content: &str| {
        let messages = json!([{ "role": "user", "content": content }]);
        server.post(CHAT, &json!({ "messages": messages, "tools": tools, "max_tokens": 60 }))
    };
    let question = "What is the weather like in Oslo?";
    let called = |city: Value| {
        let choice = ask(weather(city), question).json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap().to_owned()
    };
    assert_eq!(called(json!({ "type": "string" })), r#"{"city": "Oslo"}"#);
    assert_eq!(
        called(json!({ "enum": ["Rome"] })),
        r#"{"city": "Rome"}"#,
        "the schema overrides what the model would generate"
    );
    let hello = ask(weather(json!({ "type": "string" })), "Hello! How are you?").json();
    assert_eq!(hello["choices"][0]["message"].get("tool_calls"), None, "{hello}");
    let refused = ask(weather(json!({ "not": {} })), question);
    let (param, _, message) = refused.error();
    assert_eq!((refused.status, &*param), (400, "tools"));
    assert!(message.contains("the tool `get_weather` at #/properties/city: `not` cannot be enforced"), "{message}");
}

#[test]
fn unknown_hosts_and_origins_are_refused() {
    let server = Server::start(&["--cors", "https://chat.example.org", "--allow-host", "llm.example.org"]);
    assert_eq!(server.get("/v1/models", &[("Host", "evil.example")]).error().1, "host_not_allowed");
    assert_eq!(server.get("/v1/models", &[("Host", "llm.example.org")]).status, 200);
    let answer = server.get("http://evil.example/v1/models", &[("Host", "localhost")]);
    assert_eq!(answer.status, 403, "the host in the request line counts too");
    assert_eq!(server.get("/v1/models", &[("Origin", "https://evil.example")]).error().1, "origin_not_allowed");
    let answer = server.get("/v1/models", &[("Origin", "https://chat.example.org")]);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://chat.example.org"));
    let asks = [
        ("Origin", "https://chat.example.org"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let preflight = server.raw(request("OPTIONS", CHAT, &asks, "").as_bytes());
    assert_eq!((preflight.status, preflight.header("access-control-allow-headers")), (204, Some("content-type")));
    let form = [("Content-Type", "text/plain")];
    assert_eq!(server.raw(request("POST", CHAT, &form, "{}").as_bytes()).status, 415);
}

#[test]
fn requests_without_a_valid_key_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.txt");
    std::fs::write(&file, "# ours\nalpha\n\nbeta\n").unwrap();
    let server = Server::start(&["--api-key-file", file.to_str().unwrap()]);
    assert_eq!(server.get("/health", &[]).status, 200);
    for path in ["/v1/models", "/metrics", "/openapi.json", "/nothing"] {
        let answer = server.get(path, &[]);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        assert_eq!(server.get(path, &[("Authorization", "Bearer alph")]).status, 401);
    }
    for key in ["alpha", "beta"] {
        let key = format!("Bearer {key}");
        let answer = server.post_with(TEXT, &[("Authorization", &key)], &json!({ "prompt": "a", "max_tokens": 1 }));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let open = "--host 0.0.0.0 is reachable from other machines; add --api-key-file, or --no-auth";
    fails(&mut hymba(["serve", "--host", "0.0.0.0", "--port", "0"]), 2, &[open]);
    fails(&mut hymba(["serve", "--port", "99999"]), 2, &["must be a whole number from 0 to 65535"]);
    fails(&mut hymba(["serve", "--host", "127.0.0.1:8080"]), 2, &["an address or a name only"]);
    let port = server.address.rsplit(':').next().unwrap();
    fails(&mut hymba(["serve", "--port", port]), 1, &["the port is in use; use another --port"]);
    fails(&mut hymba(["serve", "--cors", "*"]), 2, &["--cors '*'"]);
    fails(&mut hymba(["serve", "--api-key", "a b"]), 2, &["API key"]);
    std::fs::write(&file, "# none\n").unwrap();
    fails(hymba(["serve", "--api-key-file"]).arg(&file), 2, &["contains no keys"]);
}

#[test]
fn openapi_models_and_metrics_are_served() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json", &[]).json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let model = &server.get("/v1/models", &[]).json()["data"][0];
    assert_eq!((&model["id"], &model["meta"]["n_ctx"]), (&json!("demo"), &json!(1024)));
    server.post(TEXT, &json!({ "prompt": "Once upon a time", "max_tokens": 5 }));
    // The scheduler may update its metrics shortly after the response.
    server.wait_for("generated_tokens_total", |tokens| tokens == 5.0);
    let page = server.get("/metrics", &[]).body;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("hymba_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[cfg(unix)]
mod unix {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt};

    use rustix::process::Signal;

    use super::*;

    #[test]
    fn the_unix_socket_is_private_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hymba.sock");
        let flags = ["--unix", path.to_str().unwrap()];
        let mut server = Server::start(&flags);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(request("GET", "/v1/models", &[("Host", "any")], "").as_bytes()).unwrap();
        assert_eq!(read_answer(stream).status, 200);
        fails(hymba(["serve"]).args(flags), 1, &["another server is listening on it"]);
        let file = folder.path().join("notes.txt");
        std::fs::write(&file, "mine").unwrap();
        fails(hymba(["serve", "--unix"]).arg(&file), 1, &["the file exists and is not a socket"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        let long = folder.path().join("s".repeat(200));
        fails(hymba(["serve", "--unix"]).arg(long), 1, &["the path of a socket can have at most", "use a shorter one"]);
        fails(hymba(["serve", "--port", "0", "--unix"]).arg(&path), 2, &["--unix", "cannot be used with", "--port"]);
        server.signal(Signal::TERM);
        assert_eq!(server.wait().code(), Some(143));
        assert!(!path.exists());
        // A killed server leaves its socket behind.
        let mut killed = Server::start(&flags);
        killed.signal(Signal::KILL);
        killed.wait();
        assert!(path.exists());
        drop(Server::start(&flags));
    }

    #[test]
    fn the_cache_folder_is_exclusive_and_write_failures_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (states, log) = (folder.path().join("states"), folder.path().join("stderr"));
        let flags = ["--cache-folder", states.to_str().unwrap()];
        let mut server = Server::start_with(&flags, std::fs::File::create(&log).unwrap());
        let model = common::demo_of_any_depth();
        let mut second = hymba(["serve", "-m", &model, "--port", "0"]);
        fails(second.args(flags), 1, &[flags[1], "another process uses it"]);

        assert_eq!(server.metric("prefix_write_failures_total"), 0.0);
        std::fs::remove_dir_all(&states).unwrap();
        std::fs::write(&states, "").unwrap();
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 2 });
        server.post(TEXT, &body);
        server.wait_for("prefix_write_failures_total", |failures| failures == 1.0);
        assert_eq!(server.post(TEXT, &body).status, 200);
        server.signal(Signal::TERM);
        server.wait();
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(log.matches("prefix states are no longer saved: ").count(), 1, "{log}");
    }

    #[test]
    fn the_first_signal_drains_and_the_second_exits() {
        let mut server = Server::start(&[]);
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 60, "stream": true });
        let whole = server.post(TEXT, &body).body;
        let mut answer = BufReader::new(server.begin(TEXT, &body));
        answer.read_line(&mut String::new()).unwrap();
        server.signal(Signal::TERM);
        let mut rest = String::new();
        answer.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("[DONE]") && whole.contains("[DONE]"), "{rest}");
        assert_eq!(server.wait().code(), Some(143));

        let mut server = Server::start(&[]);
        let _client = server.begin(TEXT, &long());
        server.wait_for("sequences_running", |running| running == 1.0);
        server.signal(Signal::INT);
        thread::sleep(Duration::from_millis(200));
        server.signal(Signal::INT);
        let status = server.wait();
        assert!(status.code() == Some(130) || status.signal() == Some(2), "{status:?}");
    }
}
