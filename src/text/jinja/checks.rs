//! Tests, as in `x is defined`.

use super::{
    Failure,
    arguments::Arguments,
    filters::FILTERS,
    interpreter::Interpreter,
    objects::Object,
    operators::{self, binary},
    syntax::{Binary, Compare},
    value::{SeqKind, Value},
};

/// The names of all tests.
const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Interpreter<'_> {
    /// Returns whether `value is name(arguments)`.
    pub(super) fn test(&mut self, name: &str, value: &Value, arguments: &Arguments) -> Result<bool, Failure> {
        let meter = self.meter;
        let with = |comparison: Compare| -> Result<bool, Failure> {
            let [other] = arguments.bind(name, ["other"], 1)?;
            operators::compare(value, comparison, &other.unwrap_or(Value::None), meter)
        };
        let remainder = |by: Value| binary(value, Binary::Rem, &by, meter);
        match name {
            "eq" | "equalto" | "==" => return with(Compare::Eq),
            "ne" | "!=" => return with(Compare::Ne),
            "lt" | "lessthan" | "<" => return with(Compare::Lt),
            "le" | "<=" => return with(Compare::Le),
            "gt" | "greaterthan" | ">" => return with(Compare::Gt),
            "ge" | ">=" => return with(Compare::Ge),
            "in" => return with(Compare::In),
            "divisibleby" => {
                let [by] = arguments.bind(name, ["num"], 1)?;
                return operators::equal(&remainder(by.unwrap_or(Value::None))?, &Value::Int(0), meter);
            }
            "sameas" => {
                let [other] = arguments.bind(name, ["other"], 1)?;
                return self.is_same(value, &other.unwrap_or(Value::None));
            }
            _ => {}
        }
        arguments.bind(name, [], 0)?;
        Ok(match name {
            "defined" => value.is_defined(),
            "undefined" => !value.is_defined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_float().is_some(),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" => match value {
                Value::Seq(seq) => !matches!(seq.kind, SeqKind::Keys | SeqKind::Values | SeqKind::Items),
                _ => matches!(value, Value::Str(_) | Value::Dict(_) | Value::Undefined(_)),
            },
            "iterable" => match value {
                Value::Object(_) => matches!(self.object(value), Some(Object::Generator(_) | Object::Loop(_))),
                _ => matches!(value, Value::Str(_) | Value::Dict(_) | Value::Undefined(_) | Value::Seq(_)),
            },
            "callable" => match value {
                Value::Object(_) => {
                    matches!(self.object(value), Some(Object::Macro(..) | Object::Loop(_) | Object::Joiner(..)))
                }
                _ => matches!(value, Value::Function(_) | Value::Method(_) | Value::Undefined(_)),
            },
            "even" => operators::equal(&remainder(Value::Int(2))?, &Value::Int(0), meter)?,
            "odd" => operators::equal(&remainder(Value::Int(2))?, &Value::Int(1), meter)?,
            "escaped" => false,
            "lower" | "upper" => {
                let text = self.text_of(value)?;
                meter.charge(text.len())?;
                let (lower, upper) = (text.chars().any(char::is_lowercase), text.chars().any(char::is_uppercase));
                if name == "lower" { lower && !upper } else { upper && !lower }
            }
            "filter" => value.as_str().is_some_and(|name| FILTERS.contains(&name)),
            "test" => value.as_str().is_some_and(|name| TESTS.contains(&name)),
            _ => return Err(Failure::new(format!("unknown test `{name}`"))),
        })
    }

    /// Whether two values are the same object, as far as that can be told.
    fn is_same(&self, left: &Value, right: &Value) -> Result<bool, Failure> {
        Ok(match (left, right) {
            (Value::Seq(a), Value::Seq(b)) => std::sync::Arc::ptr_eq(a, b),
            (Value::Dict(a), Value::Dict(b)) => std::sync::Arc::ptr_eq(a, b),
            _ => left.type_name() == right.type_name() && operators::equal(left, right, self.meter)?,
        })
    }
}
