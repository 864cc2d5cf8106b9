//! Global functions.

use std::sync::Arc;

use super::{
    Failure,
    arguments::Arguments,
    clock,
    interpreter::Interpreter,
    meter::ITEM,
    objects::Object,
    value::{Dict, Seq, SeqKind, Value},
};

/// The names of all global functions.
pub const FUNCTIONS: [&str; 7] = ["range", "dict", "namespace", "raise_exception", "strftime_now", "cycler", "joiner"];
/// Longest range, the limit of Jinja2's sandbox.
const RANGE: i128 = 100_000;

impl Interpreter<'_> {
    /// Calls a global function.
    pub(super) fn function(&mut self, name: &str, arguments: &Arguments) -> Result<Value, Failure> {
        match name {
            "range" => self.range(arguments),
            "dict" => {
                let dict = self.new_dict(arguments)?;
                Ok(Value::Dict(Arc::new(dict)))
            }
            "namespace" => {
                let dict = self.new_dict(arguments)?;
                let attributes = dict.iter().filter_map(|(key, value)| match key {
                    Value::Str(key) => Some((key.clone(), value.clone())),
                    _ => None,
                });
                let attributes: indexmap::IndexMap<_, _> = attributes.collect();
                if attributes.keys().any(|name| name.starts_with('_')) {
                    return Err(Failure::new("attributes of a namespace cannot begin with an underscore"));
                }
                self.hold(Object::Namespace(attributes))
            }
            "raise_exception" => {
                let [message] = arguments.bind("raise_exception", ["message"], 1)?;
                Err(Failure::new(self.text_of(&message.unwrap_or(Value::None))?))
            }
            "strftime_now" => {
                let [format] = arguments.bind("strftime_now", ["format"], 1)?;
                let format = format
                    .as_ref()
                    .and_then(Value::as_str)
                    .ok_or_else(|| Failure::new("strftime_now requires a string"))?;
                self.meter.charge_for(format.len(), 8)?;
                clock::now(format).map(Value::from)
            }
            "cycler" if arguments.positional.is_empty() => Err(Failure::new("at least one item has to be provided")),
            "cycler" => self.hold(Object::Cycler(arguments.positional.clone(), 0)),
            _ => {
                let [separator] = arguments.bind("joiner", ["sep"], 0)?;
                self.hold(Object::Joiner(separator.unwrap_or_else(|| ", ".into()), false))
            }
        }
    }

    fn range(&mut self, arguments: &Arguments) -> Result<Value, Failure> {
        let [first, second, step] = arguments.bind("range", ["start", "stop", "step"], 1)?;
        let number = |value: Option<Value>, default: i128| match value {
            None => Ok(default),
            Some(value) => value.as_int().ok_or_else(|| {
                Failure::new(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
            }),
        };
        let (start, stop) = match second {
            None => (0, number(first, 0)?),
            Some(_) => (number(first, 0)?, number(second, 0)?),
        };
        let step = number(step, 1)?;
        if step == 0 {
            return Err(Failure::new("range() arg 3 must not be zero"));
        }
        let distance = stop.saturating_sub(start);
        let count =
            if (distance > 0) == (step > 0) { (distance.unsigned_abs() - 1) / step.unsigned_abs() + 1 } else { 0 };
        let count = if distance == 0 { 0 } else { i128::try_from(count).unwrap_or(i128::MAX) };
        if count > RANGE {
            return Err(Failure::new(format!("Range too big: ranges larger than {RANGE} are refused")));
        }
        self.meter.charge_for(usize::try_from(count).unwrap_or(usize::MAX), ITEM)?;
        let items = (0..count).map(|i| Value::Int(start + i * step)).collect();
        Seq::of(SeqKind::Range(start, stop, step), items, self.meter)
    }

    fn new_dict(&mut self, arguments: &Arguments) -> Result<Dict, Failure> {
        let mut dict = Dict::default();
        match arguments.positional.first() {
            None => {}
            Some(_) if arguments.positional.len() > 1 => {
                return Err(Failure::new("dict expected at most 1 argument"));
            }
            Some(Value::Dict(from)) => {
                for (key, value) in from.iter() {
                    dict.insert(key.clone(), value.clone(), self.meter)?;
                }
            }
            Some(pairs) => {
                for pair in self.items_of(pairs)? {
                    let pair = self.items_of(&pair)?;
                    let [key, value] = &pair[..] else {
                        return Err(Failure::new("dict() requires pairs"));
                    };
                    dict.insert(key.clone(), value.clone(), self.meter)?;
                }
            }
        }
        for (name, value) in &arguments.named {
            dict.insert(Value::Str(name.clone()), value.clone(), self.meter)?;
        }
        Ok(dict)
    }
}
