//! Constraints on replies with tool calls: free text until a call begins, then arguments that match the tool's schema.
//!
//! A tagged call is constrained from its tag on, an untagged one from its arguments on: other JSON remains free text.

use std::{fmt::Write as _, sync::atomic::AtomicBool};

use serde_json::{Value, json};

use super::{Constraint, Shape, Vocabulary, cost, schema};
use crate::{
    Error, Result,
    text::{
        Tool, ToolChoice, Tools,
        calls::{CLOSE, OPEN},
    },
};

impl Shape {
    /// Returns the shape of replies that may, or with `choice` must, call `tools`; `None` if calls are disabled. A free
    /// reply may also end with one of the special tokens `breaks`, with which the model starts another turn. A required
    /// call is the whole reply.
    pub fn of_calls(tools: &Tools, choice: &ToolChoice, breaks: &[u32]) -> Option<Self> {
        let wanted = |tool: &&Tool| match choice {
            ToolChoice::Auto | ToolChoice::Required => true,
            ToolChoice::Named(only) => *only == tool.name,
            ToolChoice::None => false,
        };
        let callable: Vec<_> = tools.iter().filter(wanted).collect();
        if callable.is_empty() {
            return None;
        }
        let mut lark = String::new();
        match choice {
            ToolChoice::Auto => {
                let ends: String = breaks.iter().map(|id| format!(" | <[{id}]>")).collect();
                let end = if ends.is_empty() { "" } else { " end" };
                let untagged: Vec<_> = (0..callable.len()).map(|i| format!("untagged_{i}")).collect();
                let _ = writeln!(lark, "start: ({})* (tag call)* TEXT{end}\nTEXT: /(.|\\n)*/", untagged.join(" | "));
                let _ = writeln!(lark, "tag[lazy]: TEXT {}", quoted(OPEN));
                for (i, tool) in callable.iter().enumerate() {
                    let start = untagged_call_start(&tool.name);
                    let _ = writeln!(lark, "untagged_{i}: untagged_start_{i} SPACE? arguments_{i} SPACE? \"}}\"");
                    let _ = writeln!(lark, "untagged_start_{i}[lazy]: /{start}/");
                }
                let _ = writeln!(lark, "SPACE: /[ \\t\\n\\r]{{1,8}}/");
                if !ends.is_empty() {
                    let _ = writeln!(lark, "end: \"\"{ends}");
                }
            }
            _ => {
                let _ = writeln!(lark, "start: {} call", quoted(OPEN));
            }
        }
        let names: Vec<_> = (0..callable.len()).map(|i| format!("call_{i}")).collect();
        let _ = writeln!(lark, "call: \" \" ({}) {}", names.join(" | "), quoted(&format!(" {CLOSE}")));
        for (i, tool) in callable.into_iter().enumerate() {
            let start = format!("{{\"name\": {}, \"arguments\": ", json!(tool.name));
            let _ = writeln!(lark, "call_{i}: {} arguments_{i} \"}}\"", quoted(&start));
            let _ = writeln!(lark, "arguments_{i}: %json {}", schema::enforced(schema::with_types(parameters(tool))));
        }
        Some(Self::Lark(lark))
    }
}

impl Constraint {
    /// Compiles [`Shape::of_calls`]; a special token among `stops`, the strings that end a reply, begins another turn.
    ///
    /// # Errors
    ///
    /// [`Error::Constraint`] if a schema cannot be enforced; it names the tool and the location.
    pub fn of_calls(
        vocabulary: &Vocabulary,
        tools: &Tools,
        choice: &ToolChoice,
        stops: &[String],
        cancel: &AtomicBool,
    ) -> Result<Option<Self>> {
        let breaks: Vec<u32> = stops.iter().filter_map(|name| vocabulary.special(name)).collect();
        let Some(shape) = Shape::of_calls(tools, choice, &breaks) else { return Ok(None) };
        let schemas: Vec<_> = tools.iter().map(checked).collect::<Result<_>>()?;
        cost::check(&schemas)?;
        let error = match Self::new_until(vocabulary, &shape, cancel) {
            Err(e @ Error::Constraint { .. }) => e,
            done => return done.map(Some),
        };
        // Find the tool that causes the error.
        for tool in tools.iter() {
            let alone = Shape::JsonSchema(parameters(tool).to_string());
            if let Err(error @ Error::Constraint { .. }) = Self::new_until(vocabulary, &alone, cancel) {
                return Err(of_tool(tool, error));
            }
        }
        Err(error)
    }
}

/// Returns the schema of a tool's arguments, restricted to objects.
fn parameters(tool: &Tool) -> Value {
    let mut parameters = tool.parameters.clone().unwrap_or_else(|| json!({}));
    if let Value::Object(schema) = &mut parameters {
        let open = ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|key| schema.contains_key(*key));
        if !open {
            schema.entry("type").or_insert_with(|| "object".into());
        }
    }
    parameters
}

/// Returns the schema of a tool's arguments as it is compiled.
fn checked(tool: &Tool) -> Result<Value> {
    let schema = schema::prepared(parameters(tool));
    schema.and_then(|schema| cost::check([&schema]).map(|()| schema)).map_err(|error| of_tool(tool, error))
}

/// Returns an error about the schema of `tool`.
fn of_tool(tool: &Tool, error: Error) -> Error {
    let Error::Constraint { location, problem } = error else { return error };
    let location = location.map(|location| format!(" at {location}")).unwrap_or_default();
    Error::Constraint { location: Some(format!("the parameters of the tool `{}`{location}", tool.name)), problem }
}

/// Returns a regular expression for an untagged call of the tool `name`, up to its arguments; it may follow another call, or be
/// an item of a list.
fn untagged_call_start(name: &str) -> String {
    const SPACE: &str = r"[ \t\n\r]*";
    let name = name.replace('.', r"\.");
    let parts = [r"[\s,\[\]]*\{", r#""name""#, ":", &format!("\"{name}\""), ",", r#""(arguments|parameters)""#, ":"];
    parts.join(SPACE)
}

/// Returns `text` as a Lark string literal.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, constrain::Next, text::Tokenizer};

    fn tools() -> Tools {
        let list = json!([
            {"type": "function", "function": {"name": "get_weather", "parameters": {
                "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
                "additionalProperties": false, "$defs": {"city": {"enum": ["Oslo", "Rome"]}}}}},
            {"name": "now"},
        ]);
        Tools::from_value(&list, "test").unwrap()
    }

    fn demo() -> Tokenizer {
        Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/hymba-demo.gguf")).unwrap().tokenizer().unwrap()
    }

    /// Whether `text` is a valid start of a reply, and whether the reply may end there.
    fn judge(constraint: &Constraint, tokenizer: &Tokenizer, text: &str) -> (bool, bool) {
        let mut matching = constraint.matching();
        for id in tokenizer.encode_more(text).unwrap() {
            let allowed = match matching.next_tokens().unwrap() {
                Next::End => false,
                Next::Token(only) => only == id,
                Next::Tokens(set) => set.iter().any(|other| other == id),
            };
            if !allowed {
                return (false, false);
            }
            matching.accept(id).unwrap();
        }
        (true, matching.is_complete())
    }

    #[test]
    fn tool_calls_must_match_their_schema() {
        let tokenizer = demo();
        let vocabulary = Vocabulary::new(&tokenizer).unwrap();
        let compiled = |choice: &ToolChoice| {
            Constraint::of_calls(&vocabulary, &tools(), choice, &[], &AtomicBool::new(false)).unwrap()
        };
        const OSLO: &str = "<toolcall> {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}} </toolcall>";
        const NOW: &str = "<toolcall> {\"name\": \"now\", \"arguments\": {}} </toolcall>";
        let auto = compiled(&ToolChoice::Auto).unwrap();
        let check = |text: &str| judge(&auto, &tokenizer, text);
        for text in ["", "Hello!\n", "a < b, {\"name\": 5}", "<toolcal", "é 日本"] {
            assert_eq!(check(text), (true, true), "{text}");
        }
        for text in [OSLO, NOW, &format!("Wait.\n{OSLO}"), &format!("{OSLO}\n{NOW}\nDone.")] {
            assert_eq!(check(text), (true, true), "{text}");
        }
        for partial in ["<toolcall>", "Well, <toolcall> {\"name\": \"get", &OSLO[..50]] {
            assert_eq!(check(partial), (true, false), "{partial}");
        }
        for invalid in ["<toolcall> no", "<toolcall> {\"name\": \"other", &OSLO.replace("Oslo", "Paris"), "<toolcall>{"]
        {
            assert_eq!(check(invalid), (false, false), "{invalid}");
        }
        // without tags
        for text in [
            r#"{"name": "get_weather", "arguments": {"city": "Oslo"}}"#,
            "\n{ \"name\" :\"now\",\n\"parameters\": {} }\n",
            r#"[{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Rome"}}]"#,
            "{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}",
            r#"{"name": "now", "arguments": {}} is a call."#,
            // JSON that is not a call
            r#"{"name": "other", "arguments": {"city": "Paris"}}"#,
            r#"{"name": "get_weather", "description": "says {"}"#,
            r#"{"city": "Paris"}"#,
            r#"So: {"name": "get_weather", "arguments": {"city": "Paris"}}"#,
        ] {
            assert_eq!(check(text), (true, true), "{text}");
        }
        for partial in ["{\"name\": \"get_weather\", \"arguments\":", "[{\"name\": \"now\", \"arguments\": {}"] {
            assert_eq!(check(partial), (true, false), "{partial}");
        }
        for invalid in [
            r#"{"name": "get_weather", "arguments": {"city": "Paris"}}"#,
            r#"{"name": "get_weather", "parameters": {"city": 5"#,
            r#"{"name": "now", "arguments": null"#,
            r#"[{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Paris"}}]"#,
            "{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"P",
            r#"{"name": "now", "arguments": {}, "id": 5"#,
        ] {
            assert_eq!(check(invalid), (false, false), "{invalid}");
        }
        let named = compiled(&ToolChoice::Named("now".into())).unwrap();
        assert_eq!(judge(&named, &tokenizer, NOW), (true, true));
        for invalid in ["Hello", OSLO, &format!("{NOW}\n")] {
            assert_eq!(judge(&named, &tokenizer, invalid), (false, false), "{invalid}");
        }
        let required = compiled(&ToolChoice::Required).unwrap();
        assert_eq!(judge(&required, &tokenizer, OSLO), (true, true));
        assert_eq!(judge(&required, &tokenizer, ""), (true, false));
        assert!(compiled(&ToolChoice::None).is_none());
    }

    #[test]
    fn free_text_may_end_at_a_turn_marker() {
        let tokenizer = demo();
        let vocabulary = Vocabulary::new(&tokenizer).unwrap();
        let turn = *tokenizer.encode("<extra_id_1>", false).unwrap().last().unwrap();
        for (stops, allowed) in [(&["User:".into(), "<extra_id_1>".into()][..], true), (&[], false)] {
            let no_cancel = AtomicBool::new(false);
            let auto =
                Constraint::of_calls(&vocabulary, &tools(), &ToolChoice::Auto, stops, &no_cancel).unwrap().unwrap();
            let mut matching = auto.matching();
            for id in tokenizer.encode_more("Hello\n").unwrap() {
                matching.accept(id).unwrap();
            }
            let Next::Tokens(next) = matching.next_tokens().unwrap() else { panic!("it is over") };
            assert_eq!(next.iter().any(|id| id == turn), allowed);
        }
    }

    #[test]
    fn unenforceable_schemas_name_the_tool_and_location() {
        let vocabulary = Vocabulary::new(&demo()).unwrap();
        let list = json!([{"name": "a"}, {"name": "b", "parameters": {"type": "object", "properties": {
            "c": {"type": "string", "format": "no-such-format"}}}}]);
        let tools = Tools::from_value(&list, "test").unwrap();
        let error = Constraint::of_calls(&vocabulary, &tools, &ToolChoice::Auto, &[], &AtomicBool::new(false));
        let message = error.unwrap_err().to_string();
        assert!(message.starts_with("at the parameters of the tool `b` at #/properties/c: "), "{message}");
        // a schema cannot disable its enforcement
        let list = json!([{"name": "a", "parameters": {"x-guidance": {"lenient": true}, "properties": {
            "c": {"type": "string", "format": "no-such-format"}}}}]);
        let tools = Tools::from_value(&list, "test").unwrap();
        assert!(Constraint::of_calls(&vocabulary, &tools, &ToolChoice::Auto, &[], &AtomicBool::new(false)).is_err());
    }
}
