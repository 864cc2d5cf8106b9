//! Tools: functions that a model may call, parsed and validated from a list in the format of OpenAI's API.
//!
//! A request with tools is handled in these steps:
//!
//! - [`Tools::from_value`] parses the list and [`ToolChoice::parse`] the choice; errors name the JSON path.
//! - [`super::Inputs`] passes the list, retrieved texts and the messages to [`super::Template::render_literal`]. An
//!   assistant message with calls contains the result of [`super::calls::to_text`], and a tool's result is a message with
//!   the role [`super::Role::Tool`].
//! - [`super::ReplyParser`] parses the streamed reply into text and complete calls; [`super::parse_reply`] parses a
//!   complete one.

use serde_json::{Map, Value, json};

use crate::{Error, Result, foreign::json_problem, limits};

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON Schema of its arguments; `None`: any object.
    pub parameters: Option<Value>,
    /// The item of the list.
    item: Value,
}

/// Functions that the model may call; at least one, with distinct names.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools(Vec<Tool>);

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// Never: the prompt does not list the tools.
    None,
    /// At least one call is required.
    Required,
    /// A call of this tool is required.
    Named(String),
}

impl Tools {
    /// Parses a list of functions, the text of a file or a flag; `origin` is its name for error messages.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        if text.len() > limits::TOOLS_BYTES {
            let (bytes, limit) = (text.len(), limits::TOOLS_BYTES / limits::MB);
            return Err(Error::format(origin, format!("has {bytes} bytes; the limit for tools is {limit} MB")));
        }
        let list = serde_json::from_str(text).map_err(|e| Error::format(origin, json_problem(&e)))?;
        Self::from_value(&list, origin)
    }

    /// Returns the functions of `list`; `origin` is its name for error messages. An item is
    /// `{"type": "function", "function": {"name", "description", "parameters"}}`, or the inner object alone.
    pub fn from_value(list: &Value, origin: &str) -> Result<Self> {
        let bad = |problem: String| Error::format(origin, problem);
        let Value::Array(items) = list else {
            let expected = "a list of functions, [{\"type\": \"function\", \"function\": {...}}]";
            return Err(bad(format!("contains {}, not {expected}", kind(list))));
        };
        if items.is_empty() {
            return Err(bad("contains no tools; give a list of at least one function".into()));
        }
        if items.len() > limits::TOOLS {
            let (count, limit) = (items.len(), limits::TOOLS);
            return Err(bad(format!("contains {count} tools; the limit is {limit}")));
        }
        let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let tool = Tool::new(item, i).map_err(bad)?;
            if let Some(first) = tools.iter().position(|other| other.name == tool.name) {
                return Err(bad(format!(
                    "[{i}] has the same name as [{first}], `{}`; give each tool its own",
                    tool.name
                )));
            }
            tools.push(tool);
        }
        Ok(Self(tools))
    }

    /// Returns the functions.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Tool> {
        self.0.iter()
    }

    /// Returns the function of this name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.0.iter().find(|tool| tool.name == name)
    }

    /// Returns the list as it was given.
    pub fn to_value(&self) -> Value {
        self.0.iter().map(|tool| tool.item.clone()).collect()
    }

    /// Returns a sample list, to test whether a template supports tools.
    pub(super) fn sample() -> Self {
        let item = json!({"type": "function", "function": {"name": "sample", "parameters": {"type": "object"}}});
        Self(vec![Tool { name: "sample".into(), parameters: None, item }])
    }
}

impl Tool {
    /// Parses `item` number `i` of the list; an error names the JSON path.
    fn new(item: &Value, i: usize) -> std::result::Result<Self, String> {
        let object = as_object(item, &format!("[{i}]"))?;
        match object.get("type") {
            None => {}
            Some(Value::String(kind)) if kind == "function" => {}
            Some(other) => return Err(format!("[{i}].type is {other}, but a tool's type is \"function\"")),
        }
        let (function, path) = match object.get("function") {
            Some(function) => {
                let path = format!("[{i}].function");
                (as_object(function, &path)?, path)
            }
            None => (object, format!("[{i}]")),
        };
        let name = match function.get("name") {
            Some(Value::String(name)) => name,
            Some(other) => return Err(format!("{path}.name is {}, not a string", kind(other))),
            None => return Err(format!("{path} has no \"name\"")),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > limits::TOOL_NAME || !name.chars().all(allowed) {
            let limit = limits::TOOL_NAME;
            return Err(format!("{path}.name must be 1 to {limit} letters, digits, `_`, `-` or `.`, not {name:?}"));
        }
        if let Some(other) = function.get("description").filter(|value| !value.is_string() && !value.is_null()) {
            return Err(format!("{path}.description is {}, not a string", kind(other)));
        }
        let parameters = function.get("parameters").filter(|value| !value.is_null());
        if let Some(parameters) = parameters {
            let path = format!("{path}.parameters");
            match as_object(parameters, &path)?.get("type") {
                None => {}
                Some(Value::String(kind)) if kind == "object" => {}
                Some(other) => return Err(format!("{path}.type is {other}, but arguments are an \"object\"")),
            }
        }
        Ok(Self { name: name.clone(), parameters: parameters.cloned(), item: item.clone() })
    }

    /// Whether it can be called without arguments: an empty object satisfies all keywords of its schema.
    pub(super) fn takes_nothing(&self) -> bool {
        const HARMLESS: [&str; 14] = [
            "$comment",
            "$defs",
            "$id",
            "$schema",
            "additionalProperties",
            "default",
            "definitions",
            "description",
            "examples",
            "maxProperties",
            "patternProperties",
            "properties",
            "title",
            "type",
        ];
        let is_harmless = |(key, value): (&String, &Value)| match &**key {
            "required" => value.as_array().is_some_and(Vec::is_empty),
            key => HARMLESS.contains(&key),
        };
        self.parameters.as_ref().and_then(Value::as_object).is_none_or(|schema| schema.iter().all(is_harmless))
    }
}

impl ToolChoice {
    /// Parses OpenAI's `tool_choice`: `auto`, `none`, `required`, a function's name, or
    /// `{"type": "function", "function": {"name"}}`. A name must be one of `tools`.
    pub fn from_value(choice: &Value, tools: Option<&Tools>) -> Result<Self> {
        let name = match choice {
            Value::String(word) => word,
            Value::Object(object) => {
                let named = object.get("function").unwrap_or(choice).get("name");
                named
                    .and_then(Value::as_str)
                    .ok_or_else(|| Error::Request("tool_choice does not name a function".into()))?
            }
            other => return Err(Error::Request(format!("tool_choice is {}, not a string or an object", kind(other)))),
        };
        match choice {
            Value::String(_) => Self::parse(name, tools),
            _ => Self::named(name, tools),
        }
    }

    /// Parses `auto`, `none`, `required` or the name of one of `tools`.
    pub fn parse(word: &str, tools: Option<&Tools>) -> Result<Self> {
        match word {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "required" if tools.is_some() => Ok(Self::Required),
            "required" => Err(Error::Request("a tool call is required, but no tools are given".into())),
            name => Self::named(name, tools),
        }
    }

    fn named(name: &str, tools: Option<&Tools>) -> Result<Self> {
        if tools.is_some_and(|tools| tools.get(name).is_some()) {
            return Ok(Self::Named(name.into()));
        }
        let known: Vec<_> = tools.iter().flat_map(|tools| tools.iter()).map(|tool| &*tool.name).collect();
        let known =
            if known.is_empty() { "no tools are given".into() } else { format!("available: {}", known.join(", ")) };
        Err(Error::Request(format!("unknown tool `{name}`; {known}")))
    }
}

/// Returns `value` as an object, or an error that names its `path`.
fn as_object<'v>(value: &'v Value, path: &str) -> std::result::Result<&'v Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("{path} is {}, not an object", kind(value)))
}

/// Returns the JSON type of `value`, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Tools::parse(text, "t.json").unwrap_err().to_string()
    }

    #[test]
    fn both_tool_formats_are_accepted_unchanged() {
        let list = json!([
            {"type": "function", "function": {"name": "a", "description": "A", "parameters": {"type": "object"}}},
            {"name": "b.c-D_1", "parameters": {}},
            {"type": "function", "function": {"name": "d", "parameters": null}},
        ]);
        let tools = Tools::parse(&list.to_string(), "t.json").unwrap();
        assert_eq!(tools.to_value(), list);
        assert!(tools.iter().map(|tool| &*tool.name).eq(["a", "b.c-D_1", "d"]));
        assert_eq!(tools.get("a").unwrap().parameters, Some(json!({"type": "object"})));
        assert!(tools.get("d").unwrap().parameters.is_none() && tools.get("e").is_none());
    }

    #[test]
    fn errors_include_the_json_path() {
        let list = |item: Value| json!([{"name": "a"}, item]).to_string();
        for (text, message) in [
            ("[{]".into(), "t.json: is not JSON: key must be a string at line 1 column 3"),
            ("{}".into(), "t.json: contains an object, not a list of functions"),
            ("[]".into(), "t.json: contains no tools"),
            (list(json!("b")), "t.json: [1] is a string, not an object"),
            (list(json!({"type": "retrieval"})), "t.json: [1].type is \"retrieval\", but"),
            (list(json!({"type": "function"})), "t.json: [1] has no \"name\""),
            (list(json!({"function": []})), "t.json: [1].function is a list, not an object"),
            (list(json!({"function": {"name": 5}})), "t.json: [1].function.name is a number, not a string"),
            (list(json!({"function": {"name": "a b"}})), "t.json: [1].function.name must be 1 to 64 letters"),
            (list(json!({"function": {"name": "n".repeat(65)}})), "t.json: [1].function.name must be 1 to 64 letters"),
            (list(json!({"name": "b", "description": {}})), "t.json: [1].description is an object"),
            (list(json!({"name": "b", "parameters": "c"})), "t.json: [1].parameters is a string, not an object"),
            (list(json!({"name": "b", "parameters": {"type": "array"}})), "t.json: [1].parameters.type is \"array\""),
            (list(json!({"name": "a"})), "t.json: [1] has the same name as [0], `a`"),
            (json!(vec![0; 129]).to_string(), "t.json: contains 129 tools; the limit is 128"),
            (" ".repeat(limits::TOOLS_BYTES + 1), "t.json: has 1000001 bytes; the limit for tools is 1 MB"),
        ] {
            assert!(refusal(&text).starts_with(message), "{}\nis not\n{message}", refusal(&text));
        }
        assert_eq!(refusal(&"[".repeat(100_000)), "t.json: is nested more than 127 levels deep");
    }

    #[test]
    fn tool_choices_are_words_names_or_objects() {
        let tools = Tools::from_value(&json!([{"name": "a"}]), "t").unwrap();
        let choice = |value: Value| ToolChoice::from_value(&value, Some(&tools)).map_err(|e| e.to_string());
        assert_eq!(choice(json!("auto")), Ok(ToolChoice::Auto));
        assert_eq!(choice(json!("none")), Ok(ToolChoice::None));
        assert_eq!(choice(json!("required")), Ok(ToolChoice::Required));
        assert_eq!(choice(json!("a")), Ok(ToolChoice::Named("a".into())));
        assert_eq!(choice(json!({"function": {"name": "a"}})), Ok(ToolChoice::Named("a".into())));
        assert!(choice(json!({"name": "auto"})).unwrap_err().contains("unknown tool `auto`; available: a"));
        assert!(choice(json!("b")).unwrap_err().contains("unknown tool `b`; available: a"));
        assert!(choice(json!({})).unwrap_err().contains("does not name a function"));
        assert!(choice(json!(1)).unwrap_err().contains("is a number"));
        assert!(ToolChoice::parse("required", None).unwrap_err().to_string().contains("no tools are given"));
        assert!(ToolChoice::parse("a", None).unwrap_err().to_string().contains("no tools are given"));
    }
}
