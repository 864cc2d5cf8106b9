//! `tojson`, with the output of Python's `json.dumps`.

use super::{
    Failure,
    arguments::Arguments,
    meter::{ITEM, Meter, Writer},
    operators::order,
    python,
    sorting::sort_by,
    value::{SeqKind, Value},
};

struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

/// Returns `value` as JSON.
pub fn to_json(value: &Value, arguments: &Arguments, meter: &Meter) -> Result<String, Failure> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = arguments.bind("tojson", names, 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(value) => {
            let width = value.as_int().ok_or_else(|| Failure::new("tojson: indent must be an integer"))?;
            let mut text = Writer::new(meter);
            text.repeat(" ", usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
            Some(text.finish())
        }
    };
    let (between, after_key) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(Value::Seq(pair)) if pair.items.len() == 2 => match (&pair.items[0], &pair.items[1]) {
            (Value::Str(between), Value::Str(after_key)) => (between.to_string(), after_key.to_string()),
            _ => return Err(Failure::new("tojson: separators must be strings")),
        },
        Some(_) => return Err(Failure::new("tojson: separators must be a pair")),
    };
    let [ascii, sorted] = [ascii, sorted].map(|flag| flag.is_some_and(|flag| flag.is_true()));
    let mut out = Writer::new(meter);
    Style { ascii, indent, between, after_key, sorted }.value(value, 0, &mut out)?;
    Ok(out.finish())
}

impl Style {
    fn value(&self, value: &Value, depth: usize, out: &mut Writer<'_>) -> Result<(), Failure> {
        out.meter().charge(ITEM / 2)?;
        match value {
            Value::None => out.push("null"),
            Value::Bool(value) => out.push(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push(&value.to_string()),
            Value::Float(value) => out.push(&float(*value)),
            Value::Str(text) => self.string(text, out),
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group) => {
                if seq.items.is_empty() {
                    return out.push("[]");
                }
                out.push("[")?;
                for (i, item) in seq.items.iter().enumerate() {
                    out.push(if i > 0 { &self.between } else { "" })?;
                    self.line(depth + 1, out)?;
                    self.value(item, depth + 1, out)?;
                }
                self.line(depth, out)?;
                out.push("]")
            }
            Value::Dict(dict) => {
                if dict.len() == 0 {
                    return out.push("{}");
                }
                out.push("{")?;
                let mut entries: Vec<_> = dict.iter().collect();
                out.meter().charge_for(entries.len(), ITEM / 2)?;
                if self.sorted {
                    let meter = out.meter();
                    entries = sort_by(entries, |a, b| Ok(order(a.0, b.0, meter)? == Some(std::cmp::Ordering::Less)))?;
                }
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    out.push(if i > 0 { &self.between } else { "" })?;
                    self.line(depth + 1, out)?;
                    match key {
                        Value::Str(text) => self.string(text, out)?,
                        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                            out.push("\"")?;
                            self.value(key, depth, out)?;
                            out.push("\"")?;
                        }
                        _ => {
                            let name = key.type_name();
                            return Err(Failure::new(format!(
                                "keys must be str, int, float, bool or None, not {name}"
                            )));
                        }
                    }
                    out.push(&self.after_key)?;
                    self.value(value, depth + 1, out)?;
                }
                self.line(depth, out)?;
                out.push("}")
            }
            _ => Err(Failure::new(format!("Object of type {} is not JSON serializable", value.type_name()))),
        }
    }

    /// Begins a new line if the output is indented.
    fn line(&self, depth: usize, out: &mut Writer<'_>) -> Result<(), Failure> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.push("\n")?;
        out.repeat(indent, depth)
    }

    fn string(&self, text: &str, out: &mut Writer<'_>) -> Result<(), Failure> {
        out.push("\"")?;
        for c in text.chars() {
            match c {
                '"' => out.push("\\\"")?,
                '\\' => out.push("\\\\")?,
                '\n' => out.push("\\n")?,
                '\r' => out.push("\\r")?,
                '\t' => out.push("\\t")?,
                '\u{8}' => out.push("\\b")?,
                '\u{c}' => out.push("\\f")?,
                c if c < ' ' || self.ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.meter().charge(16)?;
                        out.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => out.push_char(c)?,
            }
        }
        out.push("\"")
    }
}

fn float(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => python::float(value),
    }
}
