//! JSON schemas as llguidance takes them.

use llguidance::{JsonCompileOptions, api::TopLevelGrammar};
use serde_json::{Map, Value};

use crate::{Error, Result};

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

/// Returns the pointers of the schemas in the one at `pointer` of `root`.
pub(super) fn subschemas(root: &Value, pointer: &str) -> Vec<String> {
    let Some(Value::Object(schema)) = root.pointer(pointer) else { return Vec::new() };
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
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

/// Says the type of each option of a `oneOf` that is a mere reference, as programs write unions: without it, the crate does
/// not look at what is referred to, and can't tell the options apart.
fn with_types(mut schema: Value) -> Value {
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

/// Returns the pointer of a constant in `value` that holds a character which JSON can only write as `\\u`; such escapes are
/// not used in texts.
fn unwritable(value: &Value, pointer: &str, constant: bool) -> Option<String> {
    let is_unwritable = |c: char| c.is_ascii_control() && !"\u{8}\u{c}\n\r\t".contains(c);
    match value {
        Value::String(text) => (constant && text.contains(is_unwritable)).then(|| pointer.to_owned()),
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(i, item)| unwritable(item, &format!("{pointer}/{i}"), constant))
        }
        Value::Object(members) => members.iter().find_map(|(key, value)| {
            let constant = constant || key == "const" || key == "enum";
            unwritable(value, &format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")), constant)
        }),
        _ => None,
    }
}

/// Returns the schema that `text` is.
pub(super) fn parse(text: &str) -> Result<Value> {
    let refused = |what: String| Error::Constraint { place: None, what };
    match serde_json::from_str(text) {
        Ok(Value::Bool(true)) => Ok(Value::Object(Map::new())),
        Ok(Value::Bool(false)) => Err(refused("the schema is `false`, which nothing matches".into())),
        Ok(schema @ Value::Object(_)) => match unwritable(&schema, "", false) {
            Some(place) => {
                let what = "a control character that JSON writes as `\\u…` is not supported in a constant".into();
                Err(Error::Constraint { place: Some(format!("#{place}")), what })
            }
            None => Ok(with_types(schema)),
        },
        Ok(_) => Err(refused("a JSON schema is an object, or `true`".into())),
        Err(e) => Err(refused(format!("is not JSON: {e}"))),
    }
}

/// Returns the grammar of the JSON texts that `schema` accepts. What they may have beside their values is fixed: a space
/// after each comma and colon, as models have read it most; so most of their tokens follow from the schema.
pub(super) fn grammar(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(enforced(schema))
}

/// Returns `schema` with the options of [`grammar`] in it.
pub(super) fn enforced(mut schema: Value) -> Value {
    let options = JsonCompileOptions {
        item_separator: ", ".into(),
        key_separator: ": ".into(),
        whitespace_flexible: false,
        // Without \u: a name that is spelled in another way would be the same name to a reader, but not to the grammar.
        json_allowed_escapes: Some("nrbtf\\\"".into()),
        ..JsonCompileOptions::default()
    };
    // Takes the place of what the schema may say itself, which could switch off the enforcement.
    options.apply_to(&mut schema);
    schema
}
