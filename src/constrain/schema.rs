//! Prepares JSON schemas for llguidance.

use llguidance::{JsonCompileOptions, api::TopLevelGrammar};
use serde_json::{Map, Value};

use crate::{Error, Result, foreign::json_problem};

/// Keywords whose value is a schema.
const ONE: [&str; 12] = [
    "additionalProperties",
    "items",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords whose value is an object of schemas.
const NAMED: [&str; 5] = ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// Returns the pointers of the direct subschemas at `pointer` in `root`.
pub(super) fn subschemas(root: &Value, pointer: &str) -> Vec<String> {
    let Some(Value::Object(schema)) = root.pointer(pointer) else { return Vec::new() };
    let mut parts = Vec::new();
    for (key, value) in schema {
        let at = format!("{pointer}/{}", escaped(key));
        match value {
            Value::Array(list) if LIST.contains(&&**key) => parts.extend((0..list.len()).map(|i| format!("{at}/{i}"))),
            Value::Object(named) if NAMED.contains(&&**key) => {
                parts.extend(named.keys().map(|name| format!("{at}/{}", escaped(name))));
            }
            Value::Object(_) if ONE.contains(&&**key) => parts.push(at),
            _ => {}
        }
    }
    parts
}

/// Adds the type to each option of a `oneOf` that is only a reference, as generated unions have it. llguidance does not
/// follow references when it checks that the options are disjoint.
pub(super) fn with_types(mut schema: Value) -> Value {
    let (mut left, mut typed) = (vec![String::new()], Vec::new());
    while let Some(pointer) = left.pop() {
        left.extend(subschemas(&schema, &pointer));
        let options = schema.pointer(&pointer).and_then(|part| part.get("oneOf")?.as_array());
        for (number, option) in options.into_iter().flatten().enumerate() {
            let target = option.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
            let kind = target.and_then(|target| schema.pointer(target)?.get("type").cloned());
            if let Some(kind) = kind.filter(|_| option.get("type").is_none()) {
                typed.push((format!("{pointer}/oneOf/{number}"), kind));
            }
        }
    }
    for (pointer, kind) in typed {
        if let Some(Value::Object(option)) = schema.pointer_mut(&pointer) {
            option.shift_insert(0, "type".into(), kind);
        }
    }
    schema
}

/// Returns `name` as a part of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Returns the pointer of a constant or member name with a character that JSON can only encode as `\\u`, which the
/// grammar excludes.
fn unwritable(schema: &Value) -> Option<String> {
    let mut left = vec![String::new()];
    while let Some(pointer) = left.pop() {
        let parts = subschemas(schema, &pointer);
        let keywords = schema.pointer(&pointer).and_then(Value::as_object);
        for (key, value) in keywords.into_iter().flatten() {
            let at = format!("{pointer}/{key}");
            let found = match (&**key, value) {
                ("const" | "enum" | "required", value) => unwritable_in(value, &at),
                ("properties", Value::Object(members)) => {
                    members.keys().find(|name| is_unwritable(name)).map(|name| format!("{at}/{}", escaped(name)))
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        left.extend(parts);
    }
    None
}

/// Returns the pointer of such a string in `value`, which is at `pointer`.
fn unwritable_in(value: &Value, pointer: &str) -> Option<String> {
    match value {
        Value::String(text) => is_unwritable(text).then(|| pointer.to_owned()),
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(i, item)| unwritable_in(item, &format!("{pointer}/{i}")))
        }
        Value::Object(members) => members.iter().find_map(|(name, value)| {
            let at = format!("{pointer}/{}", escaped(name));
            if is_unwritable(name) { Some(at) } else { unwritable_in(value, &at) }
        }),
        _ => None,
    }
}

fn is_unwritable(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_control() && !"\u{8}\u{c}\n\r\t".contains(c))
}

/// Parses a schema.
pub(super) fn parse(text: &str) -> Result<Value> {
    let refused = |problem: String| Error::Constraint { location: None, problem };
    match serde_json::from_str(text) {
        Ok(Value::Bool(true)) => Ok(Value::Object(Map::new())),
        Ok(Value::Bool(false)) => Err(refused("the schema is `false`, which nothing matches".into())),
        Ok(schema @ Value::Object(_)) => prepared(schema),
        Ok(_) => Err(refused("a JSON schema must be an object or `true`".into())),
        Err(e) => Err(refused(json_problem(&e))),
    }
}

/// Returns `schema` in the form that is compiled; fails for unsupported parts that llguidance would accept.
pub(super) fn prepared(schema: Value) -> Result<Value> {
    if let Some(location) = unwritable(&schema) {
        let problem = "control characters that JSON escapes as `\\u…` are not supported in constants and names".into();
        return Err(Error::Constraint { location: Some(format!("#{location}")), problem });
    }
    Ok(with_types(schema))
}

/// Returns the grammar for JSON that matches `schema`. White space is fixed to one space after each comma and colon,
/// the most common format; so most of the tokens in between are forced.
pub(super) fn grammar(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(enforced(schema))
}

/// Returns `schema` with the options for [`grammar`] added.
pub(super) fn enforced(mut schema: Value) -> Value {
    let options = JsonCompileOptions {
        item_separator: ", ".into(),
        key_separator: ": ".into(),
        whitespace_flexible: false,
        // Excludes `\u`: it would allow other spellings of a property name that the grammar does not recognize as the
        // same name.
        json_allowed_escapes: Some("nrbtf\\\"".into()),
        ..JsonCompileOptions::default()
    };
    // Overwrites options within the schema, which could disable the enforcement.
    options.apply_to(&mut schema);
    schema
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_are_rejected_in_constants_and_names() {
        for (schema, pointer) in [
            (json!({"const": "a\u{1}"}), "#/const"),
            (json!({"enum": ["a", {"b": ["\u{1}"]}]}), "#/enum/1/b/0"),
            (json!({"const": {"a\u{7f}": 1}}), "#/const/a\u{7f}"),
            (json!({"properties": {"a": {"items": {"const": "\u{1f}"}}}}), "#/properties/a/items/const"),
            (json!({"properties": {"\u{1}": {}}}), "#/properties/\u{1}"),
            (json!({"required": ["\u{1}"]}), "#/required/0"),
        ] {
            let refused = prepared(schema).unwrap_err();
            assert!(matches!(&refused, Error::Constraint { location: Some(at), .. } if at == pointer), "{refused}");
        }
        for schema in [
            json!({"description": "\u{1}", "default": {"const": "\u{1}"}, "examples": [{"enum": ["\u{1}"]}]}),
            json!({"properties": {"const": {"description": "\u{1}"}, "enum": {"title": "\u{1}"}}}),
            json!({"properties": {"properties": {"properties": {"const": {"$comment": "\u{1}"}}}}}),
            json!({"const": "a\n\t\r\u{8}\u{c}"}),
        ] {
            assert!(prepared(schema.clone()).is_ok(), "{schema}");
        }
    }
}
