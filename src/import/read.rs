//! Text and JSON files of a folder.

use std::{borrow::Cow, io::Read, path::Path};

use serde::de::DeserializeOwned;

use crate::{
    Error, Result,
    foreign::json_problem,
    format::{exists, open_file},
    limits,
};

/// Reads a text file of bounded length.
pub(super) fn text(path: &Path) -> Result<String> {
    let failed = |e| Error::io("cannot read", path, e);
    let bad = |problem: &str| Error::format(path.display().to_string(), problem);
    let mut bytes = Vec::new();
    open_file(path)?.take(limits::FOLDER_TEXT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limits::FOLDER_TEXT {
        return Err(bad("is too large for such a file"));
    }
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text; download it again"))
}

/// Reads a JSON file.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &text(path)?)
}

/// Reads an optional file with `read`; `None` if it is absent, or invalid, which is added to `notes`.
pub(super) fn optional<T>(path: &Path, notes: &mut Vec<String>, read: impl FnOnce(&Path) -> Result<T>) -> Option<T> {
    match exists(path).and_then(|exists| exists.then(|| read(path)).transpose()) {
        Ok(read) => read,
        Err(e) => {
            notes.push(format!("{e}; ignored"));
            None
        }
    }
}

/// Reads the JSON `text` of the file at `path`.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    let text = without_numbers_of_python(text);
    let json = &mut serde_json::Deserializer::from_str(&text);
    let parsed = serde_path_to_error::deserialize(&mut *json).map_err(|e| {
        let key = e.path().to_string();
        let reason = e.into_inner();
        match &*key {
            _ if reason.is_syntax() || reason.is_eof() => json_problem(&reason),
            "." => format!("is not valid: {reason}"),
            key => format!("is not valid: `{key}`: {reason}"),
        }
    });
    let parsed = parsed.and_then(|parsed| json.end().map(|()| parsed).map_err(|e| json_problem(&e)));
    parsed.map_err(|problem| Error::format(path.display().to_string(), problem))
}

/// Returns `text` with Python's non-JSON numbers (`NaN`, `Infinity`) as strings, so that they are harmless in unused
/// keys.
fn without_numbers_of_python(text: &str) -> Cow<'_, str> {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !NUMBERS.iter().any(|number| text.contains(number)) {
        return text.into();
    }
    let (mut out, mut copied, mut at, mut quoted) = (String::new(), 0, 0, false);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'-' if !quoted => {
                if let Some(number) = NUMBERS.iter().find(|number| bytes[at..].starts_with(number.as_bytes())) {
                    out += &text[copied..at];
                    out += &format!("\"{number}\"");
                    at += number.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    (out + &text[copied..]).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only parsing is tested")]
    struct Sizes {
        hidden: usize,
        layers: Option<BTreeMap<String, Vec<usize>>>,
    }

    #[test]
    fn nan_in_an_unused_key_is_harmless() {
        let parse = |text: &str| parse::<Sizes>(Path::new("config.json"), text).map_err(|e| e.to_string());
        for text in [
            r#"{"hidden": 4, "limit": Infinity, "low": [-Infinity, NaN]}"#,
            r#"{"hidden": 4, "NaN": "a \" NaN \\", "Infinity": NaN}"#,
        ] {
            assert_eq!(parse(text).unwrap().hidden, 4, "{text}");
        }
        let message = parse(r#"{"hidden": NaN}"#).unwrap_err();
        assert!(message.contains("`hidden`: invalid type: string \"NaN\""), "{message}");
        assert_eq!(without_numbers_of_python(r#"["NaN", NaN, -Infinity]"#), r#"["NaN", "NaN", "-Infinity"]"#);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text: &str| parse::<Sizes>(Path::new("config.json"), text).unwrap_err().to_string();
        let deep = message(r#"{"hidden": 4, "layers": {"a": [1, "b"]}}"#);
        assert!(deep.contains("`layers.a[1]`: invalid type"), "{deep}");
        assert!(message("{}").contains("missing field `hidden`"));
        assert!(message(r#"{"hidden": 4} x"#).contains("trailing characters"));
        assert!(!message(r#"{"hidden": "#).contains("`"), "{}", message(r#"{"hidden": "#));
    }
}
