//! JSON schemas as llguidance takes them.

use llguidance::{JsonCompileOptions, api::TopLevelGrammar};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Returns the schema that `text` is.
pub(super) fn parse(text: &str) -> Result<Value> {
    let refused = |what: String| Error::Constraint { place: None, what };
    match serde_json::from_str(text) {
        Ok(Value::Bool(true)) => Ok(Value::Object(Map::new())),
        Ok(Value::Bool(false)) => Err(refused("the schema is `false`, which nothing matches".into())),
        Ok(schema @ Value::Object(_)) => Ok(schema),
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
