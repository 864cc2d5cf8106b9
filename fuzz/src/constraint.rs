//! Constraints (JSON schemas, regular expressions and grammars) and texts that match them; lists of tools and replies with calls.

use std::sync::{OnceLock, atomic::AtomicBool};

use hymba::{
    constrain::{Constraint, Next, Shape, Vocabulary},
    format::gguf::Metadata,
    text::{Call, Tokenizer, Tool, ToolChoice, Tools, parse_reply},
};
use serde_json::{Value, json};

/// Sets a tokenizer with all bytes and some words in a file's metadata.
pub fn set_tokenizer(metadata: &mut Metadata) {
    let words =
        ["▁", "a", "b", "ab", "\"", "\",", "▁\"", "{", "}", "{\"", "é", "true", ":", "1", "0", ",", "[", "]", "null"];
    let special = ["<unk>", "<s>", "</s>"].map(String::from);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = special.iter().cloned().chain(bytes).chain(words.map(String::from));
    let vocab: serde_json::Map<_, _> = tokens.zip(0..).map(|(token, id)| (token, id.into())).collect();
    let mut json: Value = serde_json::from_str(&super::text::small()).expect("JSON");
    json["added_tokens"] = special
        .into_iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    json["model"]["vocab"] = Value::Object(vocab);
    json["model"]["merges"] = json!([["a", "b"], ["{", "\""], ["▁", "\""], ["\"", ","]]);
    super::text::set_tokenizer(metadata);
    metadata.set("tokenizer.huggingface.json", json.to_string());
}

/// Returns that tokenizer and its vocabulary.
fn vocabulary() -> &'static (Tokenizer, Vocabulary) {
    static ONCE: OnceLock<(Tokenizer, Vocabulary)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut metadata = Metadata::default();
        set_tokenizer(&mut metadata);
        let tokenizer = Tokenizer::from_metadata(&metadata, "model.gguf").expect("a tokenizer");
        let vocabulary = Vocabulary::new(&tokenizer).expect("a vocabulary");
        (tokenizer, vocabulary)
    })
}

/// Input: a letter for the kind, the text of the constraint, a zero byte, and choices among the allowed tokens; for a list of
/// tools, the reply instead of choices.
pub fn constrain(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let mut parts = rest.splitn(2, |&byte| byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let choices = parts.next().unwrap_or_default();
    let shape = match kind {
        b'r' => Shape::Regex(text),
        b'l' => Shape::Lark(text),
        b'g' => Shape::Gbnf(text),
        b't' => return call(&text, &String::from_utf8_lossy(choices)),
        _ => Shape::JsonSchema(text),
    };
    let (tokenizer, vocabulary) = vocabulary();
    let Ok(constraint) = Constraint::new(vocabulary, &shape) else { return false };
    let (mut matching, mut ids) = (constraint.matching(), Vec::new());
    let mut choices = choices.iter().chain(std::iter::repeat(&0)).take(150);
    loop {
        let Some(&choice) = choices.next() else { return true };
        let id = match matching.next_tokens() {
            Err(_) => return true, // an error: a limit of the engine is exceeded
            Ok(Next::End) => break,
            Ok(Next::Token(id)) => id,
            Ok(Next::Tokens(allowed)) => {
                let nth = usize::from(choice) % allowed.len();
                allowed.iter().nth(nth).expect("the index is in range")
            }
        };
        let forced = matching.forced();
        assert!(forced.iter().all(|&id| (id as usize) < tokenizer.vocab()));
        if matching.accept(id).is_err() {
            return true;
        }
        if !tokenizer.ends().contains(&id) {
            ids.push(id);
        }
    }
    assert!(matching.is_complete());
    if let Shape::JsonSchema(_) = shape {
        let mut stream = tokenizer.stream_after(&[259]);
        let text: String = ids.iter().map(|&id| stream.push(id)).collect();
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text:?} is not JSON");
    }
    true
}

/// If `reply` matches the constraint for the tools in `list`, its calls must name these tools, with arguments that match their
/// schemas.
fn call(list: &str, reply: &str) -> bool {
    let (tokenizer, vocabulary) = vocabulary();
    let Ok(tools) = Tools::parse(list, "tools") else { return false };
    let compiled = Constraint::of_calls(vocabulary, &tools, &ToolChoice::Auto, &[], &AtomicBool::new(false));
    let (Ok(Some(constraint)), Ok(ids)) = (compiled, tokenizer.encode_more(reply)) else { return false };
    let Some(true) = accepts(&constraint, &ids) else { return false };
    let called = parse_reply(reply, &tools).calls;
    called.iter().for_each(|call| check_call(&tools, call));
    true
}

/// Whether `ids` match; `None` if a limit of the engine is exceeded.
fn accepts(constraint: &Constraint, ids: &[u32]) -> Option<bool> {
    let mut matching = constraint.matching();
    for &id in ids {
        let allowed = match matching.next_tokens().ok()? {
            Next::End => false,
            Next::Token(only) => only == id,
            Next::Tokens(set) => set.iter().any(|other| other == id),
        };
        if !allowed {
            return Some(false);
        }
        matching.accept(id).ok()?;
    }
    Some(matching.is_complete())
}

fn check_call(tools: &Tools, call: &Call) {
    let (tokenizer, vocabulary) = vocabulary();
    let tool: &Tool = tools.get(&call.name).expect("a tool of the list");
    let schema = tool.parameters.clone().unwrap_or_else(|| json!({}));
    // A schema without a type is interpreted as an object.
    if schema.get("type").is_some() || tool.parameters.is_none() {
        let shape = if tool.parameters.is_none() { Shape::JsonObject } else { Shape::JsonSchema(schema.to_string()) };
        let constraint = Constraint::new(vocabulary, &shape).expect("the schema was compiled before");
        let ids = tokenizer.encode_more(&call.arguments).expect("text");
        assert_ne!(accepts(&constraint, &ids), Some(false), "{} does not match {schema}", call.arguments);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"$ref": "#/$defs/b"}},
        "required": ["b"], "$defs": {"b": {"anyOf": [{"type": "integer", "maximum": 9}, {"items": {"enum": ["x", null]}}]}}});
    let mut texts: Vec<String> = [
        json!({"const": {"a": [1, 2.5, null, true, "\u{e9}\n"]}}),
        json!({"enum": ["red", 5, null, {"$ref": "#/nowhere"}]}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}, "minItems": 1, "maxItems": 3}),
        json!({"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": false}),
        json!({"type": "string", "pattern": "^(a|b){2,3}$", "maxLength": 3}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.01}),
        json!({"allOf": [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"type": "integer", "maximum": 3}}, "required": ["a"]}]}),
        json!({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}),
        json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"const": {"$ref": "#/$defs/n"}}}}}),
    ]
    .iter()
    .map(|schema| format!("s{schema}"))
    .collect();
    texts.extend([
        format!("s{schema}"),
        "ra[b-d]{2,3}(x|y)*".into(),
        "r(?i)\\d{2}\\.[^a-z]?|\\w+$".into(),
        "lstart: \"a\" b+\nb: /[0-9]/ | \"(\" b \")\"\n".into(),
        "lstart: x* \"z\"\nx[lazy]: /a.*b/\n%ignore /[ ]/\nj: %json {\"type\": \"null\"}\n".into(),
        "groot ::= \"(\" root \")\" | [a-z]{1,3} ws\nws ::= \" \"*\n".into(),
        "groot ::= a? (b | \"\\\"\" [^\\n])+ # it\na ::= \"a\" | b{2}\nb ::= [\\x41-C]\n".into(),
    ]);
    let walks = texts.iter().map(|text| [text.as_bytes(), b"\0\x01\x05\x09\xff\x10\x22\x33\x44"].concat());
    let list = json!([{"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["b", 1]}}, "required": ["a"]}},
        {"type": "function", "function": {"name": "g"}}]);
    let replies = [
        "a",
        "ab <toolcall> {\"name\": \"f\", \"arguments\": {\"a\": \"b\"}} </toolcall> a",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n{\"name\": \"g\", \"parameters\": {}}",
        "[{\"name\": \"g\", \"arguments\": {\"a\": [null, {}]}}]",
        "{\"name\": \"f\", \"a\": 5}",
    ];
    let calls = replies.map(|reply| format!("t{list}\0{reply}").into_bytes());
    walks.chain(calls).collect()
}
