//! Tokenizers and chat templates with texts. Parts of the input are separated by zero bytes.

use hymba::{
    format::gguf::Metadata,
    limits,
    text::{Message, Role, Template, Tokenizer},
};
use serde_json::json;

fn parts(data: &[u8]) -> Vec<String> {
    data.split(|&b| b == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// Returns a tokenizer like Llama's with a dozen tokens.
pub fn small() -> String {
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "<e>", "é", "</e>"];
    let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, id)| (t.to_string(), id.into())).collect();
    let added = [0, 1, 2, 9, 11].map(|id| {
        json!({"id": id, "content": tokens[id], "special": id != 11, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    });
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": null, "post_processor": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "a"], ["a", "b"]]},
    })
    .to_string()
}

/// Sets the keys of [`small`] in a file's metadata.
pub fn set_tokenizer(metadata: &mut Metadata) {
    metadata.set("tokenizer.huggingface.json", small());
    for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
        metadata.set(format!("tokenizer.ggml.{key}_token_id"), id);
    }
}

/// Input: tokenizer.json, then texts.
pub fn tokenizer(data: &[u8]) -> bool {
    let parts = parts(data);
    let mut metadata = Metadata::default();
    set_tokenizer(&mut metadata);
    metadata.set("tokenizer.huggingface.json", &*parts[0]);
    let Ok(tokenizer) = Tokenizer::from_metadata(&metadata, "model.gguf") else { return false };
    let encode = |text: &String| {
        let ids = tokenizer.encode(text, true).and_then(|ids| Ok([ids, tokenizer.encode_more(text)?].concat()));
        ids.inspect(|ids| drop(tokenizer.decode(ids))).is_ok()
    };
    tokenizer.name(tokenizer.eos());
    parts[1..].iter().all(encode)
}

pub fn tokenizer_seeds() -> Vec<Vec<u8>> {
    vec![[small().as_bytes(), b"\0ab a <s> \xc3\xa9\nb</e>"].concat()]
}

/// Input: a template, then messages.
pub fn template(data: &[u8]) -> bool {
    let parts = parts(data);
    let Ok(template) = Template::new(&parts[0], "model.gguf", "<s>", "</s>") else { return false };
    let roles = [Role::System, Role::User, Role::Assistant, Role::User].into_iter().cycle();
    let messages: Vec<_> = roles.zip(&parts[1..]).map(|(role, text)| Message::new(role, text)).collect();
    let rendered = [true, false].map(|add_prompt| template.render(&messages, add_prompt));
    assert!(rendered.iter().flatten().all(|text| text.len() <= limits::PROMPT));
    let stops = template.stops();
    rendered.iter().all(Result::is_ok) && stops.is_ok()
}

pub fn template_seeds() -> Vec<Vec<u8>> {
    let templates = [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{{ bos_token }}{%- for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]\
         {% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
        "{% macro say(m) %}{{ m.role|upper ~ ': ' ~ m.content.replace('a', 'b').split('b')|join('-') }}\n{% endmacro %}\
         {% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m) * 2 }}{% endfor %}\
         {{ range(ns.n)|list|tojson }}{% if ns.n > 900 %}{{ raise_exception('too many') }}{% endif %}",
    ];
    templates.map(|source| [source.as_bytes(), b"\0be brief\0hello <s>\0hi\0more"].concat()).into()
}
