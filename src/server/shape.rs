//! Constraints on answers: `response_format` and tool calls.

use serde_json::Value;

use super::{
    error::{ApiError, Result},
    fields::Fields,
};
use crate::{
    Error,
    constrain::Shape,
    text::{ToolChoice, Tools},
};

/// Takes the requested response format, if there is one.
pub fn response_format(fields: &mut Fields) -> Result<Option<Shape>> {
    let path = fields.path("response_format");
    let Some(value) = fields.value("response_format") else { return Ok(None) };
    let mut format = Fields::of(&path, value)?;
    let kind = format.text("type")?.ok_or_else(|| ApiError::missing(&format.path("type")))?;
    let shape = match &*kind {
        "text" => None,
        "json_object" => Some(Shape::JsonObject),
        "json_schema" => {
            let path = format.path("json_schema");
            let schema = format.value("json_schema").ok_or_else(|| ApiError::missing(&path))?;
            let mut named = Fields::of(&path, schema)?;
            named.text("name")?;
            named.text("description")?;
            named.flag("strict")?; // schemas are always enforced strictly
            let path = named.path("schema");
            let schema = named.value("schema").ok_or_else(|| ApiError::missing(&path))?;
            named.finish()?;
            Some(Shape::JsonSchema(schema.to_string()))
        }
        other => {
            let problem = format!("must be text, json_object or json_schema, not {other}");
            return Err(ApiError::field(&format.path("type"), problem));
        }
    };
    format.finish()?;
    Ok(shape)
}

/// Takes the tools and the tool choice.
pub fn tools(fields: &mut Fields) -> Result<(Option<Tools>, ToolChoice)> {
    let path = fields.path("tools");
    let tools = match fields.value("tools") {
        None => None,
        Some(Value::Array(list)) if list.is_empty() => None,
        Some(list) => Some(Tools::from_value(&list, &path).map_err(|error| match error {
            Error::Format { problem, .. } => ApiError::field(&path, problem),
            other => ApiError::from(other).of_field(&path),
        })?),
    };
    let path = fields.path("tool_choice");
    let choice = match fields.value("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) if !["auto", "none", "required"].contains(&&*word) => {
            return Err(ApiError::field(&path, format!("must be auto, none, required or a function, not {word}")));
        }
        Some(value) => {
            ToolChoice::from_value(&value, tools.as_ref()).map_err(|error| ApiError::from(error).of_field(&path))?
        }
    };
    Ok((tools.filter(|_| choice != ToolChoice::None), choice))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(body: Value) -> String {
        let mut fields = Fields::of("", body).unwrap();
        let error = response_format(&mut fields).map(drop).and_then(|()| tools(&mut fields).map(drop)).unwrap_err();
        error.body()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn unknown_formats_and_tools_are_rejected() {
        for (body, expected) in [
            (json!({"response_format": {"type": "xml"}}), "`response_format.type`: must be text"),
            (json!({"response_format": {"type": "json_schema"}}), "`response_format.json_schema` is required"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
                "`response_format.json_schema.schema` is required",
            ),
            (json!({"tools": [{"type": "function"}]}), "`tools`: "),
            (json!({"tools": [{"name": "f"}], "tool_choice": "g"}), "`tool_choice`: must be auto"),
            (json!({"tool_choice": "required"}), "`tool_choice`: "),
        ] {
            let message = refused(body);
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
