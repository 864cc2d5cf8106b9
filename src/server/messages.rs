//! Chat messages in the format of OpenAI's API.

use serde_json::{Value, json};

use super::{
    bounds,
    error::{ApiError, Result},
    fields::{Fields, mismatch},
};
use crate::text::{Call, Role, calls};

/// A message.
#[derive(Clone, Debug)]
pub struct ChatMessage {
    pub role: Role,
    pub content: String,
}

/// Takes the messages of a request.
pub fn take(fields: &mut Fields) -> Result<Vec<ChatMessage>> {
    let path = fields.path("messages");
    let list = fields.list("messages")?.ok_or_else(|| ApiError::missing(&path))?;
    if list.is_empty() {
        return Err(ApiError::field(&path, "must contain at least one message"));
    }
    if list.len() > bounds::MESSAGES {
        return Err(ApiError::field(&path, format!("has {} messages; the limit is {}", list.len(), bounds::MESSAGES)));
    }
    let mut ids = Vec::new();
    list.into_iter().enumerate().map(|(i, value)| message(&format!("{path}[{i}]"), value, &mut ids)).collect()
}

/// Parses a message; `ids` are those of the tool calls so far.
fn message(path: &str, value: Value, ids: &mut Vec<String>) -> Result<ChatMessage> {
    let mut fields = Fields::of(path, value)?;
    let role = match fields.text("role")?.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(other) => {
            let problem = format!("must be system, developer, user, assistant or tool, not {other}");
            return Err(ApiError::field(&fields.path("role"), problem));
        }
        None => return Err(ApiError::missing(&fields.path("role"))),
    };
    let at = fields.path("content");
    let text = fields.value("content").map(|value| content(&at, value)).transpose()?;
    let mut called = Vec::new();
    if role == Role::Assistant {
        // Clients send answers back with these fields.
        fields.only("annotations", &[json!([])], "annotations are not supported; leave them out")?;
        let at = fields.path("tool_calls");
        for (i, value) in fields.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
            let (id, call) = call(&format!("{at}[{i}]"), value)?;
            ids.push(id);
            called.push(call);
        }
    }
    if role == Role::Tool {
        let at = fields.path("tool_call_id");
        let id = fields.text("tool_call_id")?.ok_or_else(|| ApiError::missing(&at))?;
        if !ids.contains(&id) {
            return Err(ApiError::field(&at, format!("no previous message has a tool call with the id {id}")));
        }
    }
    let content = match text {
        None if called.is_empty() => {
            return Err(ApiError::missing(&at));
        }
        text => calls::to_text(&text.unwrap_or_default(), &called),
    };
    fields.only("name", &[], "the chat template does not support names; leave it out")?;
    fields.finish()?;
    Ok(ChatMessage { role, content })
}

/// Parses a tool call and its id.
fn call(path: &str, value: Value) -> Result<(String, Call)> {
    let mut fields = Fields::of(path, value)?;
    let id = fields.text("id")?.ok_or_else(|| ApiError::missing(&fields.path("id")))?;
    fields.only("type", &[json!("function")], "must be function")?;
    let at = fields.path("function");
    let function = fields.value("function").ok_or_else(|| ApiError::missing(&at))?;
    fields.finish()?;
    let mut function = Fields::of(&at, function)?;
    let name = function.text("name")?.ok_or_else(|| ApiError::missing(&function.path("name")))?;
    let at = function.path("arguments");
    let arguments = function.text("arguments")?.filter(|text| !text.is_empty()).unwrap_or_else(|| "{}".into());
    if !serde_json::from_str::<Value>(&arguments).is_ok_and(|arguments| arguments.is_object()) {
        return Err(ApiError::field(&at, "must be the JSON text of an object"));
    }
    function.finish()?;
    Ok((id, Call { name, arguments }))
}

/// Returns the text of a message, which may consist of parts.
fn content(path: &str, value: Value) -> Result<String> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(mismatch(path, "a string or a list of text parts", &other)),
    };
    let part = |(i, value): (usize, Value)| {
        let mut part = Fields::of(&format!("{path}[{i}]"), value)?;
        let kind = part.text("type")?.ok_or_else(|| ApiError::missing(&part.path("type")))?;
        if kind != "text" {
            return Err(ApiError::unsupported(&part.path("type"), format!("the model reads text only, not {kind}")));
        }
        let text = part.text("text")?.ok_or_else(|| ApiError::missing(&part.path("text")))?;
        part.finish()?;
        Ok(text)
    };
    parts.into_iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(messages: Value) -> Result<Vec<ChatMessage>> {
        take(&mut Fields::of("", json!({ "messages": messages })).unwrap())
    }

    fn refusal(messages: Value) -> String {
        parsed(messages).unwrap_err().body()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn parts_are_joined() {
        let messages = parsed(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null, "audio": null},
        ]))
        .unwrap();
        let contents: Vec<_> = messages.iter().map(|message| (message.role, &*message.content)).collect();
        assert_eq!(contents, [(Role::System, "Be brief."), (Role::User, "ab"), (Role::Assistant, "c")]);
    }

    #[test]
    fn tool_calls_are_written_in_the_models_format() {
        let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
        let messages = parsed(json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": "5"},
        ]))
        .unwrap();
        assert_eq!(messages[1].content, r#"<toolcall> {"name": "f", "arguments": {"a": 1}} </toolcall>"#);
        assert_eq!((messages[2].role, &*messages[2].content), (Role::Tool, "5"));
    }

    #[test]
    fn invalid_messages_name_the_field() {
        for (messages, expected) in [
            (json!([]), "`messages`: must contain at least one message"),
            (json!([{"role": "user"}]), "`messages[0].content` is required"),
            (json!([{"content": "a"}]), "`messages[0].role` is required"),
            (json!([{"role": "king", "content": "a"}]), "`messages[0].role`: must be system"),
            (json!(["a"]), "`messages[0]`: must be an object, not a string"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "`messages[0].content[0].type`: the model reads text only, not image_url",
            ),
            (json!([{"role": "user", "content": 5}]), "`messages[0].content`: must be a string or a list"),
            (
                json!([{"role": "user", "content": "a", "name": "b"}]),
                "`messages[0].name`: the chat template does not support names",
            ),
            (json!([{"role": "user", "content": "a", "weight": 1}]), "`messages[0].weight`: this field is unknown"),
            (json!({}), "`messages`: must be a list, not an object"),
            (
                json!([{"role": "tool", "content": "5", "tool_call_id": "a"}]),
                "`messages[0].tool_call_id`: no previous message",
            ),
            (
                json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "5"}}]}]),
                "`messages[0].tool_calls[0].function.arguments`: must be the JSON text of an object",
            ),
        ] {
            let message = refusal(messages);
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
