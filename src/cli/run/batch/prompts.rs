//! The input file of a batch: one JSON object per line.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use hymba::{
    foreign::json_problem,
    limits,
    text::{Message, Role},
};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::{prompt::skip_byte_order_mark, usage::Usage};

/// Maximum line length in bytes: a prompt may use a quarter of it, to leave room for JSON escapes.
const LONGEST: usize = 4 * limits::PROMPT;

/// A line that is not blank.
pub struct Line {
    /// Its line number, from 1.
    pub number: usize,
    /// Its bytes, or why they are invalid.
    pub bytes: Result<Vec<u8>, String>,
}

impl Line {
    /// Returns the hash that identifies the line in its answer.
    pub fn hash(&self) -> String {
        let bytes = self.bytes.as_ref().map_or(&[][..], |bytes| bytes.trim_ascii());
        blake3::hash(bytes).to_hex()[..16].into()
    }
}

/// The lines of a file.
pub struct Lines {
    file: BufReader<File>,
    number: usize,
}

impl Lines {
    /// Opens the file at `path`, which is read more than once.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        if !path.metadata().with_context(cannot)?.is_file() {
            bail!("{} is not a regular file; use one for the prompts, since it is read more than once", path.display());
        }
        let mut lines = Self { file: BufReader::new(File::open(path).with_context(cannot)?), number: 0 };
        skip_byte_order_mark(&mut lines.file).with_context(cannot)?;
        Ok(lines)
    }

    /// Returns to the start.
    pub fn rewind(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.number = 0;
        skip_byte_order_mark(&mut self.file)
    }

    /// Returns the next line that is not blank.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            if (&mut self.file).take(LONGEST as u64 + 1).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if bytes.len() > LONGEST {
                self.skip_rest()?;
                let limit = LONGEST / limits::MB;
                return Ok(Some(Line { number, bytes: Err(format!("the line is longer than {limit} MB")) }));
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Line { number, bytes: Ok(bytes) }));
            }
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.file.fill_buf()?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let (used, is_over) = (end.map_or(buffer.len(), |end| end + 1), end.is_some() || buffer.is_empty());
            self.file.consume(used);
            if is_over {
                return Ok(());
            }
        }
    }
}

/// The contents of a line, with defaults from the flags. The fields have the names of OpenAI's API and of our JSON
/// output.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Repeated in the answer.
    #[serde(alias = "custom_id")]
    id: Option<Value>,
    pub prompt: Option<String>,
    pub messages: Option<Vec<InputMessage>>,
    pub system: Option<String>,
    /// −1: no limit.
    #[serde(alias = "max_completion_tokens", alias = "n_predict")]
    pub max_tokens: Option<i64>,
    pub stop: Option<Stops>,
    pub ignore_eos: Option<bool>,
    pub seed: Option<u64>,
    #[serde(alias = "temp")]
    pub temperature: Option<f64>,
    pub top_k: Option<f64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: Option<f64>,
    pub repeat_last_n: Option<f64>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    /// By token id.
    pub logit_bias: BTreeMap<u32, f32>,
}

/// A message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    role: InputRole,
    content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum InputRole {
    System,
    User,
    Assistant,
    Tool,
}

impl InputMessage {
    pub fn message(&self) -> Message<'_> {
        let role = match self.role {
            InputRole::System => Role::System,
            InputRole::User => Role::User,
            InputRole::Assistant => Role::Assistant,
            InputRole::Tool => Role::Tool,
        };
        Message::new(role, &self.content)
    }
}

/// Stop strings.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Stops {
    One(String),
    Several(Vec<String>),
}

impl Stops {
    pub fn into_list(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Several(stops) => stops,
        }
    }
}

impl Request {
    /// Returns the line's id, if it has one, and its contents.
    pub fn of(bytes: &[u8]) -> (Option<Value>, anyhow::Result<Self>) {
        let value: Value = match serde_json::from_slice(bytes) {
            Ok(value @ Value::Object(_)) => value,
            Ok(_) => return (None, Err(Usage("the line is not a JSON object".into()).into())),
            Err(e) => return (None, Err(Usage(format!("the line {}", json_problem(&e))).into())),
        };
        let id = value.get("id").or_else(|| value.get("custom_id")).cloned();
        let request = serde_json::from_value::<Self>(value).map_err(|e| Usage(e.to_string()).into());
        (id, request.and_then(Self::checked))
    }

    fn checked(self) -> anyhow::Result<Self> {
        let finite = |value: Option<f32>| value.is_none_or(f32::is_finite);
        ensure!(self.prompt.is_some() != self.messages.is_some(), "give either `prompt` or `messages`");
        ensure!(self.messages.as_ref().is_none_or(|all| !all.is_empty()), "`messages` is empty; give at least one");
        ensure!(self.max_tokens.is_none_or(|max| max >= -1), "`max_tokens` must be a number of tokens, or -1");
        ensure!(finite(self.frequency_penalty) && finite(self.presence_penalty), "a penalty must be a number");
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_are_counted_but_skipped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "\u{feff}{}\n\n  \r\n{\"a\":1}\r\nlast").unwrap();
        let mut lines = Lines::open(file.path()).unwrap();
        for _ in 0..2 {
            let all: Vec<_> = std::iter::from_fn(|| lines.next().unwrap()).collect();
            let texts: Vec<_> = all.iter().map(|l| (l.number, l.bytes.clone().unwrap())).collect();
            let expected = [(1, b"{}\n".to_vec()), (4, b"{\"a\":1}\r\n".to_vec()), (5, b"last".to_vec())];
            assert_eq!(texts, expected);
            assert_ne!(all[0].hash(), all[1].hash());
            lines.rewind().unwrap();
        }
    }

    #[test]
    fn overlong_lines_do_not_affect_later_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, [&vec![b'a'; LONGEST + 10][..], b"\n{}"].concat()).unwrap();
        let mut lines = Lines::open(file.path()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap().bytes.unwrap_err(), "the line is longer than 64 MB");
        assert_eq!(lines.next().unwrap().unwrap().bytes.unwrap(), b"{}");
        assert!(lines.next().unwrap().is_none());
    }

    #[test]
    fn invalid_requests_have_specific_errors() {
        for (line, expected) in [
            ("[]", "is not a JSON object"),
            ("{", "is not JSON: EOF"),
            ("{}", "either `prompt` or `messages`"),
            (r#"{"prompt": "a", "messages": []}"#, "either `prompt` or `messages`"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"prompt": 5}"#, "invalid type"),
            (r#"{"prompt": "a", "tempe": 1}"#, "unknown field `tempe`"),
            (r#"{"prompt": "a", "max_tokens": -2}"#, "`max_tokens` must be"),
            (r#"{"messages": [{"role": "god", "content": ""}]}"#, "unknown variant `god`"),
        ] {
            let message = Request::of(line.as_bytes()).1.unwrap_err().to_string();
            assert!(message.contains(expected), "{line}: {message}");
        }
        let (id, request) = Request::of(br#"{"custom_id": 7, "prompt": "a", "stop": "b", "logit_bias": {"5": 1}}"#);
        let request = request.unwrap();
        assert_eq!((id, request.logit_bias[&5]), (Some(7.into()), 1.0));
        assert_eq!(request.stop.unwrap().into_list(), ["b"]);
    }
}
