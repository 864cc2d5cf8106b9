//! What a tokenizer.json may be made of. The library that runs it knows parts that can make a text grow without end, that
//! draw lots, or that panic at what they don't expect; Hymba's tokenizers have none of these.

use serde::{Deserialize, de::IgnoredAny};

use crate::limits::TOKENIZER_GROWTH;

#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Part>,
    pre_tokenizer: Option<Part>,
    decoder: Option<Part>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[expect(dead_code, reason = "must be there")]
    merges: IgnoredAny,
    dropout: Option<f64>,
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
    Metaspace,
    ByteFallback,
    Fuse,
    /// Refused with a message of its own.
    ByteLevel,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
}

/// What makes `json`, the text of a tokenizer.json, unusable, if anything does.
pub fn objection(json: &str) -> Option<String> {
    let parts: Parts = match serde_json::from_str(json) {
        Ok(parts) => parts,
        Err(e) => return Some(format!("tokenizer.json says {e}")),
    };
    if parts.model.kind.is_some_and(|kind| kind != "BPE") {
        return Some("it is no BPE tokenizer, which Hymba models use".into());
    }
    if parts.model.dropout.is_some_and(|share| share > 0.0) {
        return Some("its dropout would split the same text in another way each time".into());
    }
    [parts.normalizer, parts.pre_tokenizer, parts.decoder].iter().flatten().find_map(|part| match growth(part) {
        Err(what) => Some(what.into()),
        Ok(times) if times > TOKENIZER_GROWTH as f64 => {
            Some(format!("it can make a text {times} times as long, but {TOKENIZER_GROWTH} times is the limit"))
        }
        Ok(_) => None,
    })
}

/// How many times as long `part` may make a text.
fn growth(part: &Part) -> Result<f64, &'static str> {
    match part {
        Part::Sequence { parts } => parts.iter().try_fold(1.0, |all, part| Ok(all * growth(part)?)),
        Part::Prepend { prepend } => Ok(1.0 + prepend.len() as f64), // of an empty text, or nearly
        Part::Replace { pattern: Pattern::String(from), content } => match from.len() {
            0 => Err("it replaces an empty pattern"),
            from => Ok((content.len() as f64 / from as f64).max(1.0)),
        },
        Part::Strip { stop: 1.. } => Err("it strips the ends of texts"),
        Part::Metaspace => Ok(4.0), // one character for a space, and one in front
        Part::Strip { .. } | Part::ByteFallback | Part::Fuse | Part::ByteLevel => Ok(1.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn says(key: &str, part: Value) -> Option<String> {
        let mut whole = json!({"model": {"type": "BPE", "vocab": {}, "merges": []}});
        whole[key] = part;
        objection(&whole.to_string())
    }

    #[test]
    fn hymbas_parts_are_fine_and_others_are_not() {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        assert_eq!(says("normalizer", sequence(vec![prepend, replace(" ", "▁")])), None);
        assert_eq!(says("pre_tokenizer", json!({"type": "Metaspace", "replacement": "▁", "split": false})), None);
        let strip = |stop| json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
        assert_eq!(says("decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip(0)]})), None);

        for (key, part, why) in [
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "unknown variant"),
            ("normalizer", replace("", "a"), "empty pattern"),
            ("normalizer", sequence(vec![replace("a", "aaaaaaaaa"); 2]), "81 times as long"),
            ("decoder", sequence(vec![replace("a", &"a".repeat(65))]), "65 times as long"),
            (
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
                "unknown variant",
            ),
            ("decoder", strip(9), "strips"),
            ("pre_tokenizer", json!({"type": "Split"}), "unknown variant"),
            ("model", json!({"type": "Unigram", "merges": []}), "no BPE"),
            ("model", json!({"type": "BPE", "merges": [], "dropout": 0.5}), "dropout"),
            ("model", json!({"vocab": {}}), "merges"),
        ] {
            let said = says(key, part).unwrap_or_default();
            assert!(said.contains(why), "{said:?} does not say {why:?}");
        }
    }
}
