//! The keys and values of a GGUF file.

use super::Strings;

/// A metadata value, of the kinds that Hymba files use; other integer widths are converted.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer up to 64 bits (written as u32 where it fits).
    Uint(u64),
    /// Any signed integer (written as i32 where it fits).
    Int(i64),
    /// f32 or f64.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Array of unsigned integers.
    Uints(Vec<u64>),
    /// Array of signed integers.
    Ints(Vec<i64>),
    /// Array of floats.
    Floats(Vec<f64>),
    /// Array of booleans.
    Bools(Vec<bool>),
    /// Array of strings.
    Strings(Strings),
}

/// Keys and values in the file's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// Returns metadata with these keys, which must be distinct.
    pub(super) fn from_distinct(pairs: Vec<(String, Value)>) -> Self {
        Self(pairs)
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Sets `key`, in place if it is there already.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some(slot) => slot.1 = value,
            None => self.0.push((key, value)),
        }
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(k, _)| k != key);
    }

    /// Returns all keys and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// `key` as text.
    pub fn string(&self, key: &str) -> Option<&str> {
        let Value::String(s) = self.get(key)? else { return None };
        Some(s)
    }

    /// `key` as an unsigned integer.
    pub fn uint(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::Uint(v) => Some(v),
            Value::Int(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// `key` as a float.
    pub fn float(&self, key: &str) -> Option<f64> {
        let &Value::Float(v) = self.get(key)? else { return None };
        Some(v)
    }

    /// `key` as a boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        let &Value::Bool(v) = self.get(key)? else { return None };
        Some(v)
    }

    /// `key` as an array of booleans.
    pub fn bools(&self, key: &str) -> Option<&[bool]> {
        let Value::Bools(v) = self.get(key)? else { return None };
        Some(v)
    }

    /// `key` as an array of unsigned integers.
    pub fn uints(&self, key: &str) -> Option<&[u64]> {
        let Value::Uints(v) = self.get(key)? else { return None };
        Some(v)
    }

    /// `key` as an array of strings.
    pub fn strings(&self, key: &str) -> Option<&Strings> {
        let Value::Strings(v) = self.get(key)? else { return None };
        Some(v)
    }
}

macro_rules! into_value {
    ($($from:ty => $kind:ident $(as $to:ty)?;)*) => {$(
        impl From<$from> for Value {
            fn from(v: $from) -> Self {
                Value::$kind(v $(as $to)?)
            }
        }
    )*};
}

into_value! {
    i64 => Int;
    u32 => Uint as u64;
    u64 => Uint;
    usize => Uint as u64;
    f32 => Float as f64;
    bool => Bool;
    String => String;
    Vec<u64> => Uints;
    Vec<i64> => Ints;
    Vec<f64> => Floats;
    Vec<bool> => Bools;
}

impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Self {
        Value::Strings(v.iter().collect())
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.into())
    }
}
