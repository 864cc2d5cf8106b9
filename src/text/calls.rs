//! Tool calls in a reply: `<toolcall> {"name": ..., "arguments": {...}} </toolcall>`, one or several, optionally with
//! text in between, or a reply that consists only of such JSON.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::Tools;

/// The opening tag of a call.
pub const OPEN: &str = "<toolcall>";
/// The closing tag of a call.
pub const CLOSE: &str = "</toolcall>";

/// A tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The name of the tool. For calls in tags it is not checked that the tool exists.
    pub name: String,
    /// The arguments: a JSON object, as the model wrote it.
    pub arguments: String,
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyPart {
    /// Text. A call that is not valid JSON or is not closed is text.
    Text(String),
    /// A call.
    Call(Call),
}

/// A parsed reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedReply {
    /// Its text, without calls and the white space around them.
    pub text: String,
    /// Its calls, in order.
    pub calls: Vec<Call>,
}

/// The JSON form of a call.
#[derive(Deserialize, Serialize)]
struct Json<'a> {
    name: String,
    #[serde(borrow, alias = "parameters", default)]
    arguments: Option<&'a RawValue>,
}

/// The JSON of an untagged call; names with escapes are not borrowed, and refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare<'a> {
    name: &'a str,
    #[serde(borrow, alias = "parameters", default)]
    arguments: Option<&'a RawValue>,
}

impl Call {
    /// Parses a call.
    fn parse(json: &str) -> Option<Self> {
        let Json { name, arguments } = serde_json::from_str(json).ok()?;
        let arguments = match arguments.map(RawValue::get) {
            None | Some("null") => "{}".into(),
            // Some models encode the arguments as a string, like OpenAI's API.
            Some(text) if text.starts_with('"') => serde_json::from_str::<String>(text).ok()?,
            Some(text) => text.to_owned(),
        };
        let is_object = serde_json::from_str::<Map<String, Value>>(&arguments).is_ok();
        is_object.then_some(Self { name, arguments })
    }

    /// Parses one call or a list of calls, each of them with `parse`.
    fn parse_some(json: &str, parse: impl Fn(&str) -> Option<Self>) -> Option<Vec<Self>> {
        if !json.trim_start().starts_with('[') {
            return Some(vec![parse(json)?]);
        }
        let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        let calls: Option<Vec<_>> = items.into_iter().map(|item| parse(item.get())).collect();
        calls.filter(|calls| !calls.is_empty())
    }

    /// Parses an untagged call of a tool; `allows` returns whether there is a tool of this name that can be called with
    /// or without arguments. The accepted form is the one from which on replies are constrained, so that every call is
    /// constrained.
    fn parse_bare(json: &str, allows: impl Fn(&str, bool) -> bool) -> Option<Self> {
        let Bare { name, arguments } = serde_json::from_str(json).ok()?;
        (bare_beginning(json) == Some(true) && allows(name, arguments.is_some())).then(|| Self::parse(json))?
    }

    /// Returns the parsed arguments.
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

/// Returns an assistant message with `text` and `calls` as the model writes it.
pub fn to_text(text: &str, calls: &[Call]) -> String {
    let calls = calls.iter().map(|call| format!("{OPEN} {} {CLOSE}", call.to_json()));
    let parts = Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().chain(calls);
    parts.collect::<Vec<_>>().join("\n")
}

/// Returns the ranges of the tags of complete calls in the assistant message `content`.
pub(super) fn tags(content: &str) -> Vec<Range<usize>> {
    let (mut tags, mut at) = (Vec::new(), 0);
    while let Some(open) = content[at..].find(OPEN).map(|open| at + open) {
        at = open + OPEN.len();
        let rest = &content[at..];
        let Some(end) =
            Scanner::default().end(rest).filter(|&end| Call::parse_some(&rest[..end], Call::parse).is_some())
        else {
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

/// Finds the end of a JSON object or list in a growing text.
#[derive(Debug, Default)]
struct Scanner {
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// Returns the end of the first object or list in `text`, if it is complete; `text` extends that of previous calls.
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

/// Parses a reply as it is generated. Text that may be the start of a call is held back; calls are returned once
/// complete. The result does not depend on how the reply is split into pieces.
#[derive(Debug)]
pub struct ReplyParser {
    /// The names of the tools, and whether they can be called without arguments; untagged calls are only recognized with one of
    /// these names.
    tools: Vec<(String, bool)>,
    held: String,
    state: State,
    /// Whether leading white space is dropped.
    drops_space: bool,
}

#[derive(Debug)]
enum State {
    /// Only white space so far.
    Start,
    /// The reply may consist of untagged calls.
    Bare,
    Text,
    /// After the opening tag of a call.
    Call {
        /// The tag and the white space before it, in case no call follows.
        tag: String,
        scanner: Scanner,
        /// The end of its JSON, if known.
        end: Option<usize>,
    },
}

impl ReplyParser {
    /// Returns a parser for one reply of a model that may call `tools`.
    pub fn new(tools: &Tools) -> Self {
        let tools = tools.iter().map(|tool| (tool.name.clone(), tool.takes_nothing())).collect();
        Self { tools, held: String::new(), state: State::Start, drops_space: false }
    }

    /// Adds a piece and returns the parts that are now complete.
    pub fn push(&mut self, piece: &str) -> Vec<ReplyPart> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// Returns the remaining parts at the end of the reply.
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
            State::Call { tag, end: None, .. } => self.emit_tag_as_text(&tag, &mut parts),
            _ => {}
        }
        self.show(self.held.len(), &mut parts);
        parts
    }

    /// Advances one step; returns whether another step is possible without more text.
    fn advance(&mut self, parts: &mut Vec<ReplyPart>) -> bool {
        match &mut self.state {
            State::Start => {
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
                // The possible start of a call: a prefix of the tag, and white space before it.
                let tag = (1..OPEN.len()).rev().find(|&length| self.held.ends_with(&OPEN[..length])).unwrap_or(0);
                self.show(self.held[..self.held.len() - tag].trim_end().len(), parts);
                false
            }
            State::Call { tag, scanner, end: end @ None } => {
                let begins = self.held.trim_start();
                if !begins.is_empty() && !begins.starts_with(['{', '[']) {
                    let tag = std::mem::take(tag);
                    self.emit_tag_as_text(&tag, parts);
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

    /// Extracts the call whose JSON ends at `end`, and its closing tag if there is one.
    fn end_call(&mut self, tag: &str, end: usize, parts: &mut Vec<ReplyPart>) {
        let Some(calls) = Call::parse_some(&self.held[..end], Call::parse) else {
            return self.emit_tag_as_text(tag, parts);
        };
        parts.extend(calls.into_iter().map(ReplyPart::Call));
        let after = self.held[end..].trim_start();
        self.held = after.strip_prefix(CLOSE).unwrap_or(after).into();
        (self.state, self.drops_space) = (State::Text, true);
    }

    /// Treats a tag as text, since no call follows it.
    fn emit_tag_as_text(&mut self, tag: &str, parts: &mut Vec<ReplyPart>) {
        let text = if self.drops_space { tag.trim_start() } else { tag };
        parts.push(ReplyPart::Text(text.into()));
        (self.state, self.drops_space) = (State::Text, false);
    }

    /// Outputs the first `length` bytes of the held-back text.
    fn show(&mut self, length: usize, parts: &mut Vec<ReplyPart>) {
        let text: String = self.held.drain(..length).collect();
        let text = if self.drops_space { text.trim_start() } else { &text };
        if !text.is_empty() {
            parts.push(ReplyPart::Text(text.into()));
            self.drops_space = false;
        }
    }

    /// Returns the calls, if the reply consists only of untagged calls.
    fn bare_calls(&self) -> Option<Vec<Call>> {
        let (mut calls, mut rest) = (Vec::new(), self.held.trim());
        while !rest.is_empty() {
            let end = rest.starts_with(['{', '[']).then(|| Scanner::default().end(rest)).flatten()?;
            calls.extend(Call::parse_some(&rest[..end], |json| {
                Call::parse_bare(json, |name, full| self.allows(name, full))
            })?);
            rest = rest[end..].trim_start();
        }
        Some(calls)
    }

    /// Whether a tool of this name can be called, with or without arguments.
    fn allows(&self, name: &str, has_arguments: bool) -> bool {
        self.tools.iter().any(|(tool, takes_nothing)| tool == name && (has_arguments || *takes_nothing))
    }
}

/// Returns whether `text` looks like the start of untagged calls; `None`: too short to tell.
fn bare_beginning(text: &str) -> Option<bool> {
    const CALL_STARTS: [&str; 2] = ["{\"name\":", "[{\"name\":"];
    let text: String = text.chars().filter(|c| !c.is_whitespace()).take(CALL_STARTS[1].len()).collect();
    if CALL_STARTS.iter().any(|start| text.starts_with(start)) {
        return Some(true);
    }
    (!CALL_STARTS.iter().any(|start| start.starts_with(&*text))).then_some(false)
}

/// Parses a `reply` of a model that may call `tools`.
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
        let needs = json!({"properties": {"a": {}}, "required": ["a"]});
        Tools::from_value(&json!([{"name": "f"}, {"name": "g"}, {"name": "h", "parameters": needs}]), "test").unwrap()
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
    fn calls_are_extracted_from_replies() {
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
    fn text_outside_calls_is_unchanged() {
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
            // JSON that does not match a schema is not a call
            "{\"name\": \"f\", \"id\": 1, \"arguments\": {}}",
            "{\"name\": \"f\"}\n{\"arguments\": {}, \"name\": \"f\"}",
            "{\"name\": \"\\u0066\", \"arguments\": {}}",
            "{\"name\": \"h\"}",
            "[{\"name\": \"f\"}, {\"name\": \"h\"}]",
            "{\"name\": \"Ada\", \"age\": 5}",
            "[1, 2]",
        ] {
            assert_eq!(parsed(reply), (reply.into(), vec![]));
        }
        let mixed = "{\"name\": \"unknown\"} <toolcall> {\"name\": \"f\"} </toolcall>";
        assert_eq!(parsed(mixed), ("{\"name\": \"unknown\"}".into(), vec![call("f", "{}")]));
    }

    #[test]
    fn text_is_emitted_before_the_call_is_complete() {
        let mut parser = ReplyParser::new(&tools());
        assert_eq!(parser.push("Let me "), [ReplyPart::Text("Let me".into())]);
        assert_eq!(parser.push("look. <tool"), [ReplyPart::Text(" look.".into())]);
        assert_eq!(parser.push("call> {\"name\": \"f\"}"), []);
        assert_eq!(parser.push(" </toolcall>"), [ReplyPart::Call(call("f", "{}"))]);
    }

    #[test]
    fn written_calls_parse_back() {
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
