//! Template values. They are immutable, except for the attributes of namespaces, which the interpreter stores. Values
//! therefore cannot contain themselves, and their nesting is limited to [`limits::TEMPLATE_VALUE_DEPTH`].

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

use indexmap::IndexMap;

use super::{
    Failure,
    meter::{ITEM, Meter},
};
use crate::limits;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// An undefined value, and the reason.
    Undefined(Arc<str>),
    /// `none`
    None,
    /// `true` or `false`
    Bool(bool),
    /// An integer.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Str(Arc<str>),
    /// A list or another sequence.
    Seq(Arc<Seq>),
    /// A dict.
    Dict(Arc<Dict>),
    /// The index of an object of the interpreter.
    Object(usize),
    /// A global function.
    Function(&'static str),
    /// A bound method.
    Method(Arc<(Value, Arc<str>)>),
}

/// A sequence.
#[derive(Debug)]
pub struct Seq {
    /// The Python type.
    pub kind: SeqKind,
    /// The items.
    pub items: Vec<Value>,
    depth: usize,
}

/// Python types of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqKind {
    /// A list.
    List,
    /// A tuple.
    Tuple,
    /// A group of `groupby`: a tuple of the key and its items.
    Group,
    /// The keys of a dict.
    Keys,
    /// The values of a dict.
    Values,
    /// The items of a dict.
    Items,
    /// A range: start, stop, step.
    Range(i128, i128, i128),
}

/// A dict, which keeps its insertion order.
#[derive(Debug, Default)]
pub struct Dict {
    entries: IndexMap<Key, Value>,
    depth: usize,
}

/// A dict key.
#[derive(Debug)]
pub struct Key(Value);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Str(text) => text.hash(state),
            Value::Seq(seq) => seq.items.iter().for_each(|item| Self(item.clone()).hash(state)),
            Value::Bool(value) => i128::from(*value).hash(state),
            Value::Int(value) => value.hash(state),
            // Integral floats hash like integers.
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e30 => (*value as i128).hash(state),
            Value::Float(value) => value.to_bits().hash(state),
            Value::Object(id) => id.hash(state),
            _ => {}
        }
    }
}

fn deeper(depth: usize, item: &Value) -> Result<usize, Failure> {
    let depth = depth.max(1 + item.depth());
    if depth > limits::TEMPLATE_VALUE_DEPTH {
        return Err(Failure::new(format!(
            "it makes values that are nested more than {} deep",
            limits::TEMPLATE_VALUE_DEPTH
        )));
    }
    Ok(depth)
}

impl Seq {
    /// Returns a list of `items`, whose cost is already charged.
    pub fn list(items: Vec<Value>, meter: &Meter) -> Result<Value, Failure> {
        Self::of(SeqKind::List, items, meter)
    }

    /// Returns a sequence of the given type.
    pub fn of(kind: SeqKind, items: Vec<Value>, meter: &Meter) -> Result<Value, Failure> {
        meter.charge_for(items.len() + 1, ITEM)?;
        let depth = items.iter().try_fold(1, deeper)?;
        Ok(Value::Seq(Arc::new(Self { kind, items, depth })))
    }
}

impl Dict {
    /// Inserts or replaces the value of `key`.
    pub fn insert(&mut self, key: Value, value: Value, meter: &Meter) -> Result<(), Failure> {
        check_key(&key, meter)?;
        meter.charge(2 * ITEM)?;
        self.depth = deeper(deeper(self.depth, &key)?, &value)?;
        self.entries.insert(Key(key), value);
        Ok(())
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &Value, meter: &Meter) -> Result<Option<&Value>, Failure> {
        check_key(key, meter)?;
        Ok(self.entries.get(&Key(key.clone())))
    }

    /// Iterates over the entries.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (&key.0, value))
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Charges for hashing a key; fails for lists and dicts.
fn check_key(key: &Value, meter: &Meter) -> Result<(), Failure> {
    meter.charge(ITEM)?;
    match key {
        Value::Str(text) => meter.charge(text.len()),
        Value::Seq(seq) if matches!(seq.kind, SeqKind::Tuple | SeqKind::Group) => {
            seq.items.iter().try_for_each(|item| check_key(item, meter))
        }
        Value::Seq(seq) if matches!(seq.kind, SeqKind::Values | SeqKind::Range(..)) => {
            meter.charge_for(seq.items.len(), ITEM)
        }
        Value::Seq(_) | Value::Dict(_) => Err(Failure::new(format!("unhashable type: '{}'", key.type_name()))),
        _ => Ok(()),
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Int(count as i128)
    }
}

impl Value {
    /// Returns an undefined value, with the reason.
    pub fn undefined(message: impl Into<Arc<str>>) -> Self {
        Self::Undefined(message.into())
    }

    /// Converts a JSON value.
    pub fn from_json(json: &serde_json::Value, meter: &Meter) -> Result<Self, Failure> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i128() {
                Some(value) => Self::Int(value),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => {
                meter.charge(text.len())?;
                Self::from(text.as_str())
            }
            serde_json::Value::Array(items) => {
                let items = items.iter().map(|item| Self::from_json(item, meter)).collect::<Result<_, _>>()?;
                Seq::list(items, meter)?
            }
            serde_json::Value::Object(entries) => {
                let mut dict = Dict { depth: 1, ..Dict::default() };
                for (key, value) in entries {
                    dict.insert(Self::from(key.as_str()), Self::from_json(value, meter)?, meter)?;
                }
                Self::Dict(Arc::new(dict))
            }
        })
    }

    fn depth(&self) -> usize {
        match self {
            Self::Seq(seq) => seq.depth,
            Self::Dict(dict) => dict.depth,
            Self::Method(method) => method.0.depth(),
            _ => 0,
        }
    }

    /// Whether the value is truthy.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::Seq(seq) => !seq.items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            Self::Object(_) | Self::Function(_) | Self::Method(_) => true,
        }
    }

    /// Whether the value is defined.
    pub fn is_defined(&self) -> bool {
        !matches!(self, Self::Undefined(_))
    }

    /// Returns the string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the integer, if it is one; booleans count as integers, as in Python.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some((*value).into()),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    /// Returns the name of the Python type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple | SeqKind::Group => "tuple",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
                SeqKind::Range(..) => "range",
            },
            Self::Dict(_) => "dict",
            Self::Object(_) => "object",
            Self::Function(_) | Self::Method(_) => "function",
        }
    }

    /// Fails if the value is undefined.
    pub fn check_defined(&self) -> Result<(), Failure> {
        match self {
            Self::Undefined(message) => Err(Failure::new(&**message)),
            _ => Ok(()),
        }
    }
}

/// Whether two keys are equal. The look-up has already been charged.
pub fn same(left: &Value, right: &Value) -> bool {
    same_for(left, right, &mut |_| true)
}

/// Whether two keys are equal; `pay` charges the cost of a step, and the comparison stops when it returns false.
pub fn same_for(left: &Value, right: &Value, pay: &mut dyn FnMut(usize) -> bool) -> bool {
    if !pay(ITEM / 4) {
        return false;
    }
    match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => a.len() == b.len() && pay(a.len()) && a == b,
        (Value::Seq(a), Value::Seq(b)) => {
            Arc::ptr_eq(a, b)
                || left.type_name() == right.type_name()
                    && a.items.len() == b.items.len()
                    && a.items.iter().zip(&b.items).all(|(a, b)| same_for(a, b, pay))
        }
        (Value::Dict(a), Value::Dict(b)) => {
            Arc::ptr_eq(a, b)
                || a.len() == b.len()
                    && a.iter().all(|(key, value)| {
                        let free = Meter::new(u64::MAX);
                        let cost = key.as_str().map_or(ITEM, str::len);
                        pay(cost) && b.get(key, &free).ok().flatten().is_some_and(|other| same_for(value, other, pay))
                    })
        }
        (Value::Object(a), Value::Object(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => number_order(left, right) == Some(Ordering::Equal),
    }
}

/// Orders two numbers; `None` if either is not a number or is NaN.
pub fn number_order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left.as_int(), right.as_int()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (Some(a), None) => float_order(right.as_float()?, a).map(Ordering::reverse),
        (None, Some(b)) => float_order(left.as_float()?, b),
        (None, None) => left.as_float()?.partial_cmp(&right.as_float()?),
    }
}

/// Compares exactly, even if the integer has no exact float representation.
fn float_order(float: f64, int: i128) -> Option<Ordering> {
    if float.is_nan() || float.abs() >= 1.7e38 {
        return float.partial_cmp(&0.0);
    }
    Some((float.floor() as i128).cmp(&int).then(float.partial_cmp(&float.floor())?))
}
