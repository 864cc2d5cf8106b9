//! Validates a tokenizer.json. The tokenizer library supports components that let a text grow without bound, that are
//! random, or that panic on unexpected input; Hymba's tokenizers use none of these.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    foreign::json_problem,
    limits::{ADDED_TOKENS, TOKEN, TOKENIZER_GROWTH, TOKENIZER_PARTS},
};

#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Part>,
    pre_tokenizer: Option<Part>,
    decoder: Option<Part>,
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Longest,
    #[expect(dead_code, reason = "must be there")]
    merges: IgnoredAny,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Part {
    Sequence {
        #[serde(alias = "normalizers", alias = "pretokenizers", alias = "decoders")]
        parts: Vec<Part>,
    },
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        #[serde(default)]
        stop: usize,
    },
    Metaspace {
        #[serde(default)]
        replacement: String,
    },
    ByteFallback,
    Fuse,
    /// Rejected with its own message.
    ByteLevel,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
}

/// The length of the longest key of an object.
#[derive(Default)]
struct Longest(usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Longest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some((Length(key), IgnoredAny)) = map.next_entry()? {
                    longest = longest.max(key);
                }
                Ok(Longest(longest))
            }

            /// Other tokenizer models have lists; they are rejected by name.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Longest, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Longest(0))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

/// The length of a string in bytes.
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token")
            }

            fn visit_str<E>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.len()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Properties of a valid tokenizer.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// The factor by which it may lengthen a text.
    pub growth: f64,
    /// Whether normalization only replaces spaces by `▁` and prepends one.
    pub plain: bool,
    /// Whether each byte of a text is part of a token's text, or a token of its own.
    pub is_lossless: bool,
}

/// Returns the properties of `json`, the contents of tokenizer.json, or why it cannot be used.
pub fn check(json: &str) -> Result<Traits, String> {
    let Parts { normalizer, pre_tokenizer, decoder, model, added_tokens } =
        serde_json::from_str(json).map_err(|e| format!("tokenizer.json {}", with_key(json, &e)))?;
    if model.kind.is_some_and(|kind| kind != "BPE") {
        return Err("it is not a BPE tokenizer, which Hymba models use".into());
    }
    if model.dropout.is_some_and(|share| share > 0.0) {
        return Err("its dropout would make tokenization random".into());
    }
    // The library removes the prefix of merges without checking that it exists.
    for (name, mark) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if mark.as_ref().is_some_and(|mark| !mark.is_empty()) {
            return Err(format!("its {name} marks parts of words, which Hymba's tokenizers don't"));
        }
    }
    let longest = added_tokens.iter().map(|added| added.content.len()).fold(model.vocab.0, usize::max);
    if longest > TOKEN {
        return Err(format!("it has a token of {longest} bytes; the limit is {TOKEN}"));
    }
    let added: usize = added_tokens.iter().map(|added| added.content.len()).sum();
    if added > ADDED_TOKENS {
        return Err(format!("its added tokens have {added} bytes; the limit is {ADDED_TOKENS}"));
    }
    for part in [&normalizer, &pre_tokenizer, &decoder].into_iter().flatten() {
        let parts = count(part);
        if parts > TOKENIZER_PARTS {
            return Err(format!("a text would pass through {parts} parts; the limit is {TOKENIZER_PARTS}"));
        }
        let times = growth(part)?;
        if times > TOKENIZER_GROWTH as f64 {
            return Err(format!("it can make a text {times} times as long; the limit is {TOKENIZER_GROWTH} times"));
        }
    }
    let before = || [&normalizer, &pre_tokenizer].into_iter().flatten();
    Ok(Traits {
        growth: before().try_fold(1.0, |all, part| Ok::<_, String>(all * growth(part)?))?,
        plain: !model.ignore_merges && before().all(is_plain),
        is_lossless: model.byte_fallback && !added_tokens.iter().any(|added| added.lstrip || added.rstrip),
    })
}

/// Returns what `error` says about `json`, with the affected key, if there is one. Tracking keys takes time, so it is only
/// done for invalid files.
fn with_key(json: &str, error: &serde_json::Error) -> String {
    match serde_path_to_error::deserialize::<_, Parts>(&mut serde_json::Deserializer::from_str(json)) {
        Err(e) if error.is_data() && e.path().iter().next().is_some() => {
            format!("is not valid: `{}`: {error}", e.path())
        }
        _ if error.is_data() => format!("is not valid: {error}"),
        _ => json_problem(error),
    }
}

/// Returns the number of components of `part`.
fn count(part: &Part) -> usize {
    match part {
        Part::Sequence { parts } => 1 + parts.iter().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// Returns the factor by which `part` may lengthen a text.
fn growth(part: &Part) -> Result<f64, &'static str> {
    match part {
        Part::Sequence { parts } => parts.iter().try_fold(1.0, |all, part| Ok(all * growth(part)?)),
        Part::Prepend { prepend } => Ok(1.0 + prepend.len() as f64), // for a nearly empty text
        Part::Replace { pattern: Pattern::String(from), content } => match from.len() {
            0 => Err("it replaces an empty pattern"),
            from => Ok((content.len() as f64 / from as f64).max(1.0)),
        },
        Part::Strip { stop: 1.. } => Err("it strips the ends of texts"),
        Part::Metaspace { .. } => Ok(4.0), // one character per space, and one prepended
        Part::Strip { .. } | Part::ByteFallback | Part::Fuse | Part::ByteLevel => Ok(1.0),
    }
}

/// Whether `part`, a normalizer or pre-tokenizer, only replaces spaces by `▁` or prepends one.
fn is_plain(part: &Part) -> bool {
    match part {
        Part::Sequence { parts } => parts.iter().all(is_plain),
        Part::Prepend { prepend } => prepend == "▁",
        Part::Replace { pattern: Pattern::String(from), content } => from == " " && content == "▁",
        Part::Metaspace { replacement } => replacement == "▁",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check_with(key: &str, part: Value) -> Result<Traits, String> {
        let mut check_with = json!({"model": {"type": "BPE", "vocab": {}, "merges": []}});
        check_with[key] = part;
        check(&check_with.to_string())
    }

    fn replace(from: &str, to: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": from}, "content": to})
    }

    fn sequence(parts: Vec<Value>) -> Value {
        json!({"type": "Sequence", "normalizers": parts})
    }

    #[test]
    fn unsupported_components_are_rejected() {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        assert_eq!(check_with("normalizer", sequence(vec![prepend, replace(" ", "▁")])).unwrap().growth, 12.0);
        assert!(check_with("pre_tokenizer", json!({"type": "Metaspace", "replacement": "▁", "split": false})).is_ok());
        let strip = |stop| json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
        assert!(check_with("decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip(0)]})).is_ok());

        let model = |key: &str, value: Value| {
            let mut model = json!({"type": "BPE", "vocab": {"a": 0}, "merges": []});
            model[key] = value;
            model
        };
        let added = |content: String| json!({"id": 0, "content": content});
        for (key, part, reason) in [
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "unknown variant"),
            ("normalizer", replace("", "a"), "empty pattern"),
            ("normalizer", sequence(vec![replace("a", "aaaaaaaaa"); 2]), "81 times as long"),
            ("normalizer", sequence(vec![replace("a", "b"); 16]), "17 parts"),
            ("decoder", sequence(vec![replace("a", &"a".repeat(17))]), "17 times as long"),
            (
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
                "unknown variant",
            ),
            ("decoder", strip(9), "strips"),
            ("pre_tokenizer", json!({"type": "Split"}), "unknown variant"),
            ("model", json!({"type": "Unigram", "vocab": [["a", 0.5]], "merges": []}), "not a BPE tokenizer"),
            ("model", model("dropout", 0.5.into()), "dropout"),
            ("model", model("continuing_subword_prefix", "##".into()), "continuing_subword_prefix"),
            ("model", model("end_of_word_suffix", "</w>".into()), "end_of_word_suffix"),
            ("model", model("vocab", json!({"a".repeat(1025): 0})), "a token of 1025 bytes"),
            ("model", json!({"vocab": {}}), "merges"),
            ("added_tokens", vec![added("a".repeat(2000))].into(), "a token of 2000 bytes"),
            ("added_tokens", vec![added("a".repeat(1000)); 1100].into(), "1100000 bytes"),
        ] {
            let message = check_with(key, part).unwrap_err();
            assert!(message.contains(reason), "{message:?} does not contain {reason:?}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        let message = |key, part| check_with(key, part).unwrap_err();
        assert!(
            message("added_tokens", json!([{"content": "a"}, {"content": 5}]))
                .contains("`added_tokens[1].content`: invalid")
        );
        assert!(message("model", json!({"type": "BPE"})).contains("`model`: missing field `merges`"));
    }

    #[test]
    fn only_space_replacement_counts_as_plain() {
        let plain = |part| check_with("normalizer", part).unwrap().plain;
        assert!(plain(Value::Null) && plain(sequence(vec![replace(" ", "▁")])));
        assert!(!plain(replace("a", "b")) && !plain(json!({"type": "Strip"})));
    }
}
