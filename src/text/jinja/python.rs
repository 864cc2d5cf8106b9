//! Python's text representation of values, and its number parsing.

use std::fmt::Write;

use super::{
    Failure,
    meter::{ITEM, Meter, Writer},
    value::{SeqKind, Value},
};

/// Whether Python treats the character as white space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Returns `str(value)`.
pub fn text_of(value: &Value, meter: &Meter) -> Result<String, Failure> {
    let mut out = Writer::new(meter);
    write(value, &mut out)?;
    Ok(out.finish())
}

/// Returns `repr(value)`.
pub fn repr_of(value: &Value, meter: &Meter) -> Result<String, Failure> {
    let mut out = Writer::new(meter);
    write_repr(value, &mut out)?;
    Ok(out.finish())
}

/// Appends `str(value)`.
pub fn write(value: &Value, out: &mut Writer<'_>) -> Result<(), Failure> {
    match value {
        Value::Str(text) => out.push(text),
        Value::Undefined(_) => Ok(()),
        _ => write_repr(value, out),
    }
}

/// Appends `repr(value)`.
pub fn write_repr(value: &Value, out: &mut Writer<'_>) -> Result<(), Failure> {
    out.meter().charge(ITEM / 2)?;
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(value) => out.push(if *value { "True" } else { "False" }),
        Value::Int(value) => out.push(&value.to_string()),
        Value::Float(value) => out.push(&float(*value)),
        Value::Str(text) => quoted(text, out),
        Value::Seq(seq) => {
            let (open, close) = match seq.kind {
                SeqKind::List => ("[", "]"),
                SeqKind::Tuple | SeqKind::Group => ("(", if seq.items.len() == 1 { ",)" } else { ")" }),
                SeqKind::Keys => ("dict_keys([", "])"),
                SeqKind::Values => ("dict_values([", "])"),
                SeqKind::Items => ("dict_items([", "])"),
                SeqKind::Range(start, end, 1) => return out.push(&format!("range({start}, {end})")),
                SeqKind::Range(start, end, step) => return out.push(&format!("range({start}, {end}, {step})")),
            };
            out.push(open)?;
            for (i, item) in seq.items.iter().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write_repr(item, out)?;
            }
            out.push(close)
        }
        Value::Dict(dict) => {
            out.push("{")?;
            for (i, (key, value)) in dict.iter().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write_repr(key, out)?;
                out.push(": ")?;
                write_repr(value, out)?;
            }
            out.push("}")
        }
        Value::Object(_) => out.push("<object>"),
        Value::Function(name) => out.push(&format!("<function {name}>")),
        Value::Method(method) => {
            out.push(&format!("<built-in method {} of {} object>", method.1, method.0.type_name()))
        }
    }
}

fn quoted(text: &str, out: &mut Writer<'_>) -> Result<(), Failure> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\\' => out.push("\\\\")?,
            c if c == quote => {
                out.push_char('\\')?;
                out.push_char(c)?;
            }
            c if is_printable(c) => out.push_char(c)?,
            c => {
                out.meter().charge(16)?;
                out.push_char('\\')?;
                out.push(&ascii_escape(c)[1..])?;
            }
        }
    }
    out.push_char(quote)
}

/// Returns `c` as `\xe9`, `\u20ac` or `\U0001f642`.
pub fn ascii_escape(c: char) -> String {
    match u32::from(c) {
        code @ ..=0xff => format!("\\x{code:02x}"),
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// Whether `repr` keeps the character unescaped.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // Rust escapes a combining character only at the start of a string.
    let mut text = ['a'; 2].iter().collect::<String>();
    text.truncate(1);
    text.push(c);
    text.escape_debug().count() == 2
}

/// Returns `repr` of a float: the shortest digits that parse back to it.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let mut text = mantissa.to_owned();
    let _ = write!(text, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    text
}

/// Parses an integer like Python's `int(text, base)`.
pub fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefix: &str| digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let found = prefixes.iter().find(|(prefix, of)| (base == 0 || base == *of) && prefixed(prefix));
    let (digits, base) = match found {
        Some((_, base)) => (digits[2..].strip_prefix('_').unwrap_or(&digits[2..]), *base),
        None => (digits, if base == 0 { 10 } else { base }),
    };
    let digits = plain_digits(digits)?;
    let starts_with_digit = digits.starts_with(|c: char| c.is_digit(base));
    let value = i128::from_str_radix(&digits, base).ok().filter(|_| starts_with_digit)?;
    Some(if negative { -value } else { value })
}

/// Parses a number like Python's `float(text)`.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = plain_digits(text.trim_matches(is_space))?;
    let bare = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let is_word = matches!(&*bare, "inf" | "infinity" | "nan");
    let is_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (is_word || is_number).then(|| text.parse().ok()).flatten()
}

/// Returns `text` without underscores between digits; `None` if there are others.
fn plain_digits(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let alone = |at: usize| !bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    let is_misplaced = (0..bytes.len()).any(|at| bytes[at] == b'_' && (at == 0 || alone(at - 1) || alone(at + 1)));
    (!is_misplaced).then(|| text.replace('_', ""))
}
