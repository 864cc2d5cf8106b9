//! The fields of a JSON object in a request. Each is taken by name and type, and remaining fields are rejected, so that
//! nothing is silently ignored.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::error::{ApiError, Result};
use crate::{foreign::json_problem, text::kind};

/// An object whose fields are taken one by one. `null` counts as absent, as in OpenAI's API.
#[derive(Debug)]
pub struct Fields {
    /// The path of the object in the body; empty for the body itself.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(body)
            .map_err(|e| ApiError::bad(format!("the body is not UTF-8 from byte {} on", e.valid_up_to())))?;
        let value = serde_json::from_str(text).map_err(|e| ApiError::bad(format!("the body {}", json_problem(&e))))?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            other => Err(ApiError::bad(format!("the body must be a JSON object, not {}", kind(&other)))),
        }
    }

    /// Returns the fields of the object `value` at `path`.
    pub fn of(path: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path: path.into(), map }),
            other => Err(mismatch(path, "an object", &other)),
        }
    }

    /// Returns the path of a field.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field of any type.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a boolean.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", |value| value.as_bool())
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Takes an integer within `range`.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<usize>> {
        let wanted = match range.end() {
            &u64::MAX if *range.start() == 0 => "a non-negative integer".into(),
            &u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        let number = |value: &Value| value.as_u64().filter(|number| range.contains(number))?.try_into().ok();
        self.typed(name, wanted, number)
    }

    /// Takes a signed or unsigned 64-bit integer.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        self.typed(name, "a whole number of at most 64 bits", |value| {
            value.as_u64().or(value.as_i64().map(|n| n as u64))
        })
    }

    /// Takes a number within `range`.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let wanted = match (*range.start(), *range.end()) {
            (f64::MIN, f64::MAX) => "a number".into(),
            (min, f64::MAX) => format!("a number of at least {min}"),
            (min, max) => format!("a number from {min} to {max}"),
        };
        self.typed(name, wanted, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    /// Takes a list.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        self.typed(name, "a list", |value| value.as_array().cloned())
    }

    fn typed<T>(&mut self, name: &str, wanted: impl Display, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| mismatch(&self.path(name), wanted, &value))
    }

    /// Takes the unsupported field `name`, which must be absent or have one of the values `harmless`.
    pub fn only(&mut self, name: &str, harmless: &[Value], reason: &str) -> Result<()> {
        match self.value(name) {
            Some(value) if !harmless.contains(&value) => Err(ApiError::unsupported(&self.path(name), reason)),
            _ => Ok(()),
        }
    }

    /// Rejects remaining fields.
    pub fn finish(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let unknown = "this field is unknown; leave it out";
                Err(ApiError::field(&self.path(name), unknown).with_code("unknown_parameter"))
            }
            None => Ok(()),
        }
    }
}

/// Returns the error for a `value` that is not `wanted`.
pub fn mismatch(path: &str, wanted: impl Display, value: &Value) -> ApiError {
    let found = match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        other => kind(other).into(),
    };
    ApiError::field(path, format!("must be {wanted}, not {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().body()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn unknown_fields_are_rejected() {
        let mut body = fields(r#"{"a": 1, "b": null, "c": 2}"#);
        assert_eq!(body.integer("a", 0..=1).unwrap(), Some(1));
        let error = body.finish().unwrap_err().body();
        assert_eq!(
            (error["error"]["param"].as_str(), error["error"]["code"].as_str()),
            (Some("c"), Some("unknown_parameter"))
        );
        assert!(fields(r#"{"b": null}"#).finish().is_ok());
    }

    #[test]
    fn errors_name_the_field_and_the_range() {
        let mut body = fields(r#"{"n": 1.5, "t": -1, "s": "x", "f": 1, "l": {}}"#);
        assert_eq!(message(body.integer("n", 1..=8)), "`n`: must be a whole number from 1 to 8, not 1.5");
        assert_eq!(message(body.number("t", 0.0..=2.0)), "`t`: must be a number from 0 to 2, not -1");
        assert_eq!(message(body.seed("s")), "`s`: must be a whole number of at most 64 bits, not a string");
        assert_eq!(message(body.flag("f")), "`f`: must be true or false, not 1");
        assert_eq!(message(body.list("l")), "`l`: must be a list, not an object");
        let mut inner = Fields::of("a[1]", serde_json::json!({ "b": 5 })).unwrap();
        assert_eq!(message(inner.text("b")), "`a[1].b`: must be a string, not 5");
    }

    #[test]
    fn bodies_must_be_utf8_json_objects() {
        assert_eq!(message(Fields::parse(b"[1]")), "the body must be a JSON object, not a list");
        assert_eq!(message(Fields::parse(b"{\"a\": \xff}")), "the body is not UTF-8 from byte 6 on");
        assert!(
            message(Fields::parse(b"{\"a\" 1}")).starts_with("the body is not JSON: expected `:` at line 1 column 6")
        );
        let deep = "[".repeat(1 << 20);
        assert_eq!(message(Fields::parse(deep.as_bytes())), "the body is nested more than 127 levels deep");
    }
}
