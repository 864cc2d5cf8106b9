//! Calls of tools in a reply: `<toolcall> {"name": ..., "arguments": {...}} </toolcall>`, several of them with or without text
//! in between, or a reply that is nothing but such JSON.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::Tools;

/// What begins a call.
pub const OPEN: &str = "<toolcall>";
/// What ends a call.
pub const CLOSE: &str = "</toolcall>";

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The tool's name; whether there is such a tool is not checked where the call is tagged.
    pub name: String,
    /// The arguments: the JSON text of an object, as the model wrote it.
    pub arguments: String,
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyPart {
    /// Text to show. A call that is not valid JSON, or has no end, is text.
    Text(String),
    /// A call.
    Call(Call),
}

/// A reply, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedReply {
    /// Its text, without the calls and the white space around them.
    pub text: String,
    /// Its calls, in order.
    pub calls: Vec<Call>,
}

/// What a call is in JSON.
#[derive(Deserialize, Serialize)]
struct Json<'a> {
    name: String,
    #[serde(borrow, alias = "parameters", default)]
    arguments: Option<&'a RawValue>,
}

impl Call {
    /// Returns the call that `json` is.
    fn parse(json: &str) -> Option<Self> {
        let Json { name, arguments } = serde_json::from_str(json).ok()?;
        let arguments = match arguments.map(RawValue::get) {
            None | Some("null") => "{}".into(),
            // Some models write the object's text as a string, as OpenAI's responses have it.
            Some(text) if text.starts_with('"') => serde_json::from_str::<String>(text).ok()?,
            Some(text) => text.to_owned(),
        };
        let is_object = serde_json::from_str::<Map<String, Value>>(&arguments).is_ok();
        is_object.then_some(Self { name, arguments })
    }

    /// Returns the calls that `json` is: an object, or a list of them.
    fn parse_some(json: &str) -> Option<Vec<Self>> {
        if !json.trim_start().starts_with('[') {
            return Some(vec![Self::parse(json)?]);
        }
        let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        let calls: Option<Vec<_>> = items.into_iter().map(|item| Self::parse(item.get())).collect();
        calls.filter(|calls| !calls.is_empty())
    }

    /// Returns the arguments.
    pub fn arguments(&self) -> Map<String, Value> {
        serde_json::from_str(&self.arguments).unwrap_or_default()
    }

    /// Returns `{"name": ..., "arguments": {...}}`.
    pub fn to_json(&self) -> String {
        let arguments: Option<&RawValue> = serde_json::from_str(&self.arguments).ok();
        let name = to_raw_value(&self.name).map(|name| name.get().to_owned()).unwrap_or_default();
        format!("{{\"name\": {name}, \"arguments\": {}}}", arguments.map_or("{}", RawValue::get))
    }
}

/// Returns the content of an assistant's message that says `text` and makes `calls`, as the model writes it.
pub fn to_text(text: &str, calls: &[Call]) -> String {
    let calls = calls.iter().map(|call| format!("{OPEN} {} {CLOSE}", call.to_json()));
    let parts = Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().chain(calls);
    parts.collect::<Vec<_>>().join("\n")
}

/// Returns where in `content`, which an assistant said, are the tags of calls that are whole.
pub(super) fn tags(content: &str) -> Vec<Range<usize>> {
    let (mut tags, mut at) = (Vec::new(), 0);
    while let Some(open) = content[at..].find(OPEN).map(|open| at + open) {
        at = open + OPEN.len();
        let rest = &content[at..];
        let Some(end) = Scanner::default().end(rest).filter(|&end| Call::parse_some(&rest[..end]).is_some()) else {
            continue;
        };
        let space = rest[end..].len() - rest[end..].trim_start().len();
        let close = at + end + space;
        if content[close..].starts_with(CLOSE) {
            tags.extend([open..at, close..close + CLOSE.len()]);
            at = close + CLOSE.len();
        }
    }
    tags
}

/// Finds the end of a JSON object or list in a text that grows.
#[derive(Debug, Default)]
struct Scanner {
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// Returns where the first object or list of `text` ends, if it does; `text` begins as it did in earlier calls.
    fn end(&mut self, text: &str) -> Option<usize> {
        for byte in &text.as_bytes()[self.at..] {
            self.at += 1;
            match byte {
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Takes a reply as it comes, and returns its text and its calls as soon as they are whole: text that may be the beginning
/// of a call is held back. All parts, put together, do not depend on how the reply was cut into pieces.
#[derive(Debug)]
pub struct ReplyParser {
    /// The names of the tools; a call without tags is a call only if it names one.
    names: Vec<String>,
    held: String,
    state: State,
    /// Whether white space is dropped until text comes.
    drops_space: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space came.
    Begun,
    /// All of it may be calls without tags.
    Bare,
    Text,
    /// After the tag of a call.
    Call {
        /// White space and tag, in case that it is none.
        tag: String,
        scanner: Scanner,
        /// Where its JSON ends, if that is known.
        end: Option<usize>,
    },
}

impl ReplyParser {
    /// Returns a parser of one reply of a model that may call `tools`.
    pub fn new(tools: &Tools) -> Self {
        let names = tools.iter().map(|tool| tool.name.clone()).collect();
        Self { names, held: String::new(), state: State::Begun, drops_space: false }
    }

    /// Takes the next piece and returns what is whole with it.
    pub fn push(&mut self, piece: &str) -> Vec<ReplyPart> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// Returns what is left when the reply has ended.
    pub fn finish(mut self) -> Vec<ReplyPart> {
        let mut parts = Vec::new();
        if matches!(self.state, State::Bare) {
            if let Some(calls) = self.bare_calls() {
                return calls.into_iter().map(ReplyPart::Call).collect();
            }
            self.state = State::Text;
            while self.advance(&mut parts) {}
        }
        match std::mem::replace(&mut self.state, State::Text) {
            State::Call { tag, end: Some(end), .. } => {
                if CLOSE.starts_with(self.held[end..].trim_start()) {
                    self.held.truncate(end);
                }
                self.end_call(&tag, end, &mut parts);
            }
            State::Call { tag, end: None, .. } => self.give_up(&tag, &mut parts),
            _ => {}
        }
        self.show(self.held.len(), &mut parts);
        parts
    }

    /// Takes a step; returns whether another may follow without more text.
    fn advance(&mut self, parts: &mut Vec<ReplyPart>) -> bool {
        match &mut self.state {
            State::Begun => {
                self.state = match bare_beginning(&self.held) {
                    Some(true) => State::Bare,
                    Some(false) => State::Text,
                    None => return false,
                };
                true
            }
            State::Bare => false,
            State::Text => {
                if let Some(at) = self.held.find(OPEN) {
                    self.show(self.held[..at].trim_end().len(), parts);
                    let end = self.held.find(OPEN).unwrap_or(0) + OPEN.len();
                    let rest = self.held.split_off(end);
                    let tag = std::mem::replace(&mut self.held, rest);
                    self.state = State::Call { tag, scanner: Scanner::default(), end: None };
                    return true;
                }
                // What may belong to a call: the beginning of a tag, and white space before it.
                let tag = (1..OPEN.len()).rev().find(|&length| self.held.ends_with(&OPEN[..length])).unwrap_or(0);
                self.show(self.held[..self.held.len() - tag].trim_end().len(), parts);
                false
            }
            State::Call { tag, scanner, end: end @ None } => {
                let begins = self.held.trim_start();
                if !begins.is_empty() && !begins.starts_with(['{', '[']) {
                    let tag = std::mem::take(tag);
                    self.give_up(&tag, parts);
                    return true;
                }
                *end = scanner.end(&self.held);
                end.is_some()
            }
            State::Call { tag, end: Some(end), .. } => {
                let after = self.held[*end..].trim_start();
                if CLOSE.starts_with(after) && after.len() < CLOSE.len() {
                    return false;
                }
                let (tag, end) = (std::mem::take(tag), *end);
                self.end_call(&tag, end, parts);
                true
            }
        }
    }

    /// Takes the call off whose JSON ends at `end`, and its closing tag if there is one.
    fn end_call(&mut self, tag: &str, end: usize, parts: &mut Vec<ReplyPart>) {
        let Some(calls) = Call::parse_some(&self.held[..end]) else { return self.give_up(tag, parts) };
        parts.extend(calls.into_iter().map(ReplyPart::Call));
        let after = self.held[end..].trim_start();
        self.held = after.strip_prefix(CLOSE).unwrap_or(after).into();
        (self.state, self.drops_space) = (State::Text, true);
    }

    /// Takes a tag for text: no call follows it.
    fn give_up(&mut self, tag: &str, parts: &mut Vec<ReplyPart>) {
        let text = if self.drops_space { tag.trim_start() } else { tag };
        parts.push(ReplyPart::Text(text.into()));
        (self.state, self.drops_space) = (State::Text, false);
    }

    /// Shows the first `length` bytes of what is held.
    fn show(&mut self, length: usize, parts: &mut Vec<ReplyPart>) {
        let text: String = self.held.drain(..length).collect();
        let text = if self.drops_space { text.trim_start() } else { &text };
        if !text.is_empty() {
            parts.push(ReplyPart::Text(text.into()));
            self.drops_space = false;
        }
    }

    /// Returns the calls that all of the reply is, if it is nothing else.
    fn bare_calls(&self) -> Option<Vec<Call>> {
        let (mut calls, mut rest) = (Vec::new(), self.held.trim());
        while !rest.is_empty() {
            let end = rest.starts_with(['{', '[']).then(|| Scanner::default().end(rest)).flatten()?;
            calls.extend(Call::parse_some(&rest[..end])?);
            rest = rest[end..].trim_start();
        }
        calls.iter().all(|call| self.names.contains(&call.name)).then_some(calls)
    }
}

/// Returns whether `text` begins as calls without tags do; `None`: it is too short to tell.
fn bare_beginning(text: &str) -> Option<bool> {
    const BEGINNINGS: [&str; 2] = ["{\"name\":", "[{\"name\":"];
    let text: String = text.chars().filter(|c| !c.is_whitespace()).take(BEGINNINGS[1].len()).collect();
    if BEGINNINGS.iter().any(|beginning| text.starts_with(beginning)) {
        return Some(true);
    }
    (!BEGINNINGS.iter().any(|beginning| beginning.starts_with(&*text))).then_some(false)
}

/// Returns the text and the calls of `reply`, by a model that may call `tools`.
pub fn parse_reply(reply: &str, tools: &Tools) -> ParsedReply {
    let mut parser = ReplyParser::new(tools);
    let mut parts = parser.push(reply);
    parts.extend(parser.finish());
    let mut parsed = ParsedReply::default();
    for part in parts {
        match part {
            ReplyPart::Text(text) => parsed.text += &text,
            ReplyPart::Call(call) => parsed.calls.push(call),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools() -> Tools {
        Tools::from_value(&json!([{"name": "f"}, {"name": "g"}]), "test").unwrap()
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.into(), arguments: arguments.into() }
    }

    /// Returns the text and the calls of `reply`, which do not depend on the pieces that it comes in.
    fn parsed(reply: &str) -> (String, Vec<Call>) {
        let whole = parse_reply(reply, &tools());
        for length in [1, 2, 3, 7] {
            let (mut parser, mut pieces) = (ReplyParser::new(&tools()), ParsedReply::default());
            let mut parts = Vec::new();
            for piece in reply.chars().collect::<Vec<_>>().chunks(length) {
                parts.extend(parser.push(&piece.iter().collect::<String>()));
            }
            parts.extend(parser.finish());
            for part in parts {
                match part {
                    ReplyPart::Text(text) => pieces.text += &text,
                    ReplyPart::Call(call) => pieces.calls.push(call),
                }
            }
            assert_eq!(pieces, whole, "{reply:?} in pieces of {length}");
        }
        (whole.text, whole.calls)
    }

    #[test]
    fn calls_are_taken_out_of_a_reply() {
        let f = || call("f", r#"{"a": 1}"#);
        for (reply, text, calls) in [
            (r#"<toolcall> {"name": "f", "arguments": {"a": 1}} </toolcall>"#, "", vec![f()]),
            (r#"<toolcall>{"arguments":{"a": 1},"name":"f"}</toolcall>"#, "", vec![f()]),
            ("Wait. \n <toolcall> {\"name\": \"f\", \"arguments\": {\"a\": 1}} </toolcall> ", "Wait.", vec![f()]),
            (
                "<toolcall> {\"name\": \"f\", \"arguments\": {\"a\": 1}} </toolcall>\n\
                 <toolcall> {\"name\": \"unknown\"} </toolcall>\n Done. ",
                "Done. ",
                vec![f(), call("unknown", "{}")],
            ),
            (r#"<toolcall> [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]"#, "", vec![f(), call("g", "{}")]),
            (r#"<toolcall> {"name": "f", "arguments": {"a": 1}} </tool"#, "", vec![f()]),
            (r#"<toolcall> {"name": "f", "arguments": {"a": 1}} then"#, "then", vec![f()]),
            // closing tags and brackets within strings are text
            (
                r#"<toolcall> {"name": "f", "arguments": {"a": "}\"</toolcall>]"}} </toolcall>"#,
                "",
                vec![call("f", r#"{"a": "}\"</toolcall>]"}"#)],
            ),
            // what other models write
            (r#"<toolcall> {"name": "f", "arguments": "{\"a\": 1}"} </toolcall>"#, "", vec![f()]),
            (r#"<toolcall> {"name": "f", "parameters": {"a": 1}} </toolcall>"#, "", vec![f()]),
            // large numbers stay as they are
            (
                r#"<toolcall> {"name": "f", "arguments": {"a": 12345678901234567890123}}</toolcall>"#,
                "",
                vec![call("f", r#"{"a": 12345678901234567890123}"#)],
            ),
            // without tags
            ("\n{ \"name\": \"f\", \"arguments\": {\"a\": 1} }\n", "", vec![f()]),
            (r#"[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]"#, "", vec![f(), call("g", "{}")]),
            ("{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n{\"name\": \"g\"}", "", vec![f(), call("g", "{}")]),
        ] {
            assert_eq!(parsed(reply), (text.into(), calls), "{reply:?}");
        }
    }

    #[test]
    fn everything_else_is_text_to_the_letter() {
        for reply in [
            "",
            " ",
            "Hello!\n",
            "  a < b <tool <toolcal",
            "Say <toolcall> to call.",
            "<toolcall> {\"name\": \"f\", \"argum",
            "<toolcall> {\"name\": 5} </toolcall> ",
            "<toolcall> {\"name\": \"f\", \"arguments\": [1]} </toolcall>",
            "a  <toolcall> {name} </toolcall>",
            "<toolcall>",
            "{\"name\": \"unknown\", \"arguments\": {}}",
            "{\"name\": \"f\"} and more",
            "{\"name\": \"Ada\", \"age\": 5}",
            "[1, 2]",
        ] {
            assert_eq!(parsed(reply), (reply.into(), vec![]));
        }
        let mixed = "{\"name\": \"unknown\"} <toolcall> {\"name\": \"f\"} </toolcall>";
        assert_eq!(parsed(mixed), ("{\"name\": \"unknown\"}".into(), vec![call("f", "{}")]));
    }

    #[test]
    fn text_comes_before_the_call_is_whole() {
        let mut parser = ReplyParser::new(&tools());
        assert_eq!(parser.push("Let me "), [ReplyPart::Text("Let me".into())]);
        assert_eq!(parser.push("look. <tool"), [ReplyPart::Text(" look.".into())]);
        assert_eq!(parser.push("call> {\"name\": \"f\"}"), []);
        assert_eq!(parser.push(" </toolcall>"), [ReplyPart::Call(call("f", "{}"))]);
    }

    #[test]
    fn what_is_written_is_parsed_again() {
        let calls = [call("f", r#"{"a": "<toolcall> \" }"}"#), call("g", "{}")];
        let text = to_text("Wait.", &calls);
        let written = "Wait.\n<toolcall> {\"name\": \"f\", \"arguments\": {\"a\": \"<toolcall> \\\" }\"}} </toolcall>\n\
            <toolcall> {\"name\": \"g\", \"arguments\": {}} </toolcall>";
        assert_eq!(text, written);
        assert_eq!(parsed(&text), ("Wait.".into(), calls.to_vec()));
        let found: Vec<_> = tags(&text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, [OPEN, CLOSE, OPEN, CLOSE]);
        assert!(tags("<toolcall> no </toolcall>, <toolcall> {\"name\": \"f\"}").is_empty());
    }
}
