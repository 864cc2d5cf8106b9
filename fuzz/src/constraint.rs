//! JSON schemas, regular expressions and grammars, and texts that are held to them.

use std::sync::OnceLock;

use hymba::{
    constrain::{Constraint, Next, Shape, Vocabulary},
    format::gguf::Metadata,
    text::Tokenizer,
};
use serde_json::{Value, json};

/// Puts a tokenizer of all bytes and some words into a file's metadata.
pub fn describe(metadata: &mut Metadata) {
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
    super::text::describe(metadata);
    metadata.set("tokenizer.huggingface.json", json.to_string());
}

/// That tokenizer, and its vocabulary.
fn vocabulary() -> &'static (Tokenizer, Vocabulary) {
    static ONCE: OnceLock<(Tokenizer, Vocabulary)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let mut metadata = Metadata::default();
        describe(&mut metadata);
        let tokenizer = Tokenizer::from_metadata(&metadata, "model.gguf").expect("a tokenizer");
        let vocabulary = Vocabulary::new(&tokenizer).expect("a vocabulary");
        (tokenizer, vocabulary)
    })
}

/// A letter that says of what kind it is, then its text; after a zero byte, which of the tokens that may come next is chosen.
pub fn hold(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let mut parts = rest.splitn(2, |&byte| byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let choices = parts.next().unwrap_or_default();
    let shape = match kind {
        b'r' => Shape::Regex(text),
        b'l' => Shape::Lark(text),
        b'g' => Shape::Gbnf(text),
        _ => Shape::JsonSchema(text),
    };
    let (tokenizer, vocabulary) = vocabulary();
    let Ok(constraint) = Constraint::new(vocabulary, &shape) else { return false };
    let (mut matching, mut ids) = (constraint.begin(), Vec::new());
    let mut choices = choices.iter().chain(std::iter::repeat(&0)).take(150);
    loop {
        let Some(&choice) = choices.next() else { return true };
        let id = match matching.next_tokens() {
            Err(_) => return true, // it is too much for the engine's limits, and that is said
            Ok(Next::End) => break,
            Ok(Next::Token(id)) => id,
            Ok(Next::Tokens(allowed)) => {
                let nth = usize::from(choice) % allowed.len();
                allowed.iter().nth(nth).expect("there are more")
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

pub fn seeds() -> Vec<Vec<u8>> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"$ref": "#/$defs/b"}},
        "required": ["b"], "$defs": {"b": {"anyOf": [{"type": "integer", "maximum": 9}, {"items": {"enum": ["x", null]}}]}}});
    let texts = [
        format!("s{schema}"),
        "ra[b-d]{2,3}(x|y)*".into(),
        "lstart: \"a\" b+\nb: /[0-9]/ | \"(\" b \")\"\n".into(),
        "groot ::= \"(\" root \")\" | [a-z]{1,3} ws\nws ::= \" \"*\n".into(),
    ];
    texts.into_iter().map(|text| [text.as_bytes(), b"\0\x01\x05\x09\xff\x10\x22\x33\x44"].concat()).collect()
}
