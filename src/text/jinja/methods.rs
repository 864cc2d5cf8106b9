//! Methods of strings, lists and dicts.

use std::sync::Arc;

use super::{
    Failure,
    arguments::Arguments,
    meter::{ITEM, Meter},
    operators, texts,
    value::{Dict, Seq, SeqKind, Value},
};

const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const OF_TUPLES: [&str; 2] = ["count", "index"];
const OF_DICTS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
const CHANGE_LISTS: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const CHANGE_DICTS: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Whether a value has a method `name`.
pub fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => texts::METHODS.contains(&name),
        Value::Seq(seq) => match seq.kind {
            SeqKind::List => OF_LISTS.contains(&name),
            SeqKind::Tuple | SeqKind::Group | SeqKind::Range(..) => OF_TUPLES.contains(&name),
            _ => false,
        },
        Value::Dict(_) => OF_DICTS.contains(&name),
        _ => false,
    }
}

/// Whether the method `name` would modify the value, which templates may not do.
pub fn changes(value: &Value, name: &str) -> bool {
    match value {
        Value::Seq(seq) if seq.kind == SeqKind::List => CHANGE_LISTS.contains(&name),
        Value::Dict(_) => CHANGE_DICTS.contains(&name),
        _ => false,
    }
}

/// Calls a method that exists.
pub fn call(receiver: &Value, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    match receiver {
        Value::Str(text) => texts::call(text, name, arguments, meter),
        Value::Seq(seq) => of_seq(seq, name, arguments, meter),
        Value::Dict(dict) => of_dict(dict, name, arguments, meter),
        _ => Err(Failure::new(format!("'{}' object has no method '{name}'", receiver.type_name()))),
    }
}

fn of_seq(seq: &Arc<Seq>, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    if name == "copy" {
        arguments.bind("copy", [], 0)?;
        return Ok(Value::Seq(seq.clone()));
    }
    let [wanted] = arguments.bind(name, ["value"], 1)?;
    let wanted = wanted.unwrap_or(Value::None);
    let mut count = 0usize;
    for (i, item) in seq.items.iter().enumerate() {
        if operators::equal(item, &wanted, meter)? {
            if name == "index" {
                return Ok(i.into());
            }
            count += 1;
        }
    }
    if name == "index" { Err(Failure::new("the value is not in the list")) } else { Ok(count.into()) }
}

fn of_dict(dict: &Arc<Dict>, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    if name == "get" {
        let [key, default] = arguments.bind("get", ["key", "default"], 1)?;
        let found = dict.get(&key.unwrap_or(Value::None), meter)?.cloned();
        return Ok(found.or(default).unwrap_or(Value::None));
    }
    arguments.bind(name, [], 0)?;
    meter.charge_for(dict.len(), ITEM)?;
    match name {
        "copy" => Ok(Value::Dict(dict.clone())),
        "keys" => Seq::of(SeqKind::Keys, dict.iter().map(|(key, _)| key.clone()).collect(), meter),
        "values" => Seq::of(SeqKind::Values, dict.iter().map(|(_, value)| value.clone()).collect(), meter),
        _ => pairs(dict, SeqKind::Items, meter),
    }
}

/// Returns the entries of a dict as keys, values or pairs.
pub fn pairs(dict: &Dict, kind: SeqKind, meter: &Meter) -> Result<Value, Failure> {
    let pair = |(key, value): (&Value, &Value)| Seq::of(SeqKind::Tuple, vec![key.clone(), value.clone()], meter);
    Seq::of(kind, dict.iter().map(pair).collect::<Result<_, _>>()?, meter)
}
