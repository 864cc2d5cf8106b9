//! The two ways to format strings: `'%s' % x` and `'{}'.format(x)`.

use std::iter::Peekable;
use std::str::Chars;

use super::{
    Failure,
    arguments::Arguments,
    meter::{Meter, Writer},
    number_format::{Number, Spec},
    python::{ascii_escape, repr_of, text_of},
    value::{SeqKind, Value},
};

/// Returns `template % value`.
pub fn percent(template: &str, value: &Value, meter: &Meter) -> Result<String, Failure> {
    let tuple = match value {
        Value::Seq(seq) if matches!(seq.kind, SeqKind::Tuple | SeqKind::Group) => Some(&seq.items[..]),
        _ => None,
    };
    let (mut left, may_be_left) = match (tuple, value) {
        (Some(items), _) => (items, false),
        // Python treats these as mappings, whose entries may remain unused.
        (None, Value::Dict(_)) => (std::slice::from_ref(value), true),
        (None, Value::Seq(_)) => (std::slice::from_ref(value), true),
        (None, _) => (std::slice::from_ref(value), false),
    };
    let mut out = Writer::new(meter);
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push_char(c)?;
            continue;
        }
        let named = if chars.next_if_eq(&'(').is_some() { Some(entry(&mut chars, value, meter)?) } else { None };
        let mut next = || -> Result<Value, Failure> {
            let (first, rest) =
                left.split_first().ok_or_else(|| Failure::new("not enough arguments for format string"))?;
            left = rest;
            Ok(first.clone())
        };
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                '+' => spec.sign = '+',
                _ if spec.sign == '-' => spec.sign = ' ',
                _ => {}
            }
        }
        let mut size = |chars: &mut Peekable<Chars<'_>>| -> Result<i128, Failure> {
            if chars.next_if_eq(&'*').is_some() {
                return next()?.as_int().ok_or_else(|| Failure::new("* wants int"));
            }
            digits(chars)
        };
        let width = size(&mut chars)?;
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(usize::try_from(size(&mut chars)?.max(0)).unwrap_or(usize::MAX));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let kind = chars.next().ok_or_else(|| Failure::new("incomplete format"))?;
        if kind == '%' {
            out.push_char('%')?;
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        let text = match kind {
            's' => Some(text_of(&value, meter)?),
            'r' => Some(repr_of(&value, meter)?),
            'a' => Some(ascii(&repr_of(&value, meter)?)),
            'c' => Some(character(&value)?),
            _ => None,
        };
        if let Some(text) = text {
            spec.zero = false;
            spec.align = spec.align.or(Some('>'));
            spec.text(&text, &mut out)?;
            continue;
        }
        let bad =
            |wanted: &str| Failure::new(format!("%{kind} format: {wanted} is required, not {}", value.type_name()));
        if spec.align.is_some() {
            spec.zero = false;
        }
        spec.percent_style = true;
        match kind {
            'd' | 'i' | 'u' => {
                let whole = match value {
                    Value::Float(float) if float.abs() < 1e38 => Some(float.trunc() as i128),
                    _ => value.as_int(),
                };
                spec.number(Number::Int(whole.ok_or_else(|| bad("a real number"))?), 'd', &mut out)?;
            }
            'x' | 'X' | 'o' => {
                let whole = value.as_int().ok_or_else(|| bad("an integer"))?;
                spec.number(Number::Int(whole), kind, &mut out)?;
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let float = value.as_float().ok_or_else(|| bad("a real number"))?;
                spec.number(Number::Float(float), kind, &mut out)?;
            }
            _ => return Err(Failure::new(format!("unsupported format character {kind:?}"))),
        }
    }
    if !left.is_empty() && !may_be_left {
        return Err(Failure::new("not all arguments converted during string formatting"));
    }
    Ok(out.finish())
}

/// Returns the value for the key that ends with `)`.
fn entry(chars: &mut Peekable<Chars<'_>>, value: &Value, meter: &Meter) -> Result<Value, Failure> {
    let Value::Dict(dict) = value else { return Err(Failure::new("format requires a mapping")) };
    let (mut open, mut key) = (1, String::new());
    loop {
        let c = chars.next().ok_or_else(|| Failure::new("incomplete format key"))?;
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            break;
        }
        key.push(c);
    }
    let found = dict.get(&Value::from(key), meter)?;
    found.cloned().ok_or_else(|| Failure::new("a key of the format string is missing"))
}

fn digits(chars: &mut Peekable<Chars<'_>>) -> Result<i128, Failure> {
    let mut number: i128 = 0;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = digit.to_digit(10).unwrap_or_default().into();
        number =
            number.checked_mul(10).and_then(|n| n.checked_add(digit)).ok_or_else(|| Failure::new("width too big"))?;
    }
    Ok(number)
}

/// Returns `text` with non-ASCII characters escaped.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { ascii_escape(c) }).collect()
}

fn character(value: &Value) -> Result<String, Failure> {
    let found = match value {
        Value::Str(text) if text.chars().count() == 1 => text.chars().next(),
        _ => value.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32),
    };
    found.map(String::from).ok_or_else(|| Failure::new("%c requires int or char"))
}

/// Resolves one step of a field name. Receives the value, the attribute name or index, and whether it is in brackets.
pub type Lookup<'l> = dyn FnMut(&Value, &Value, bool) -> Result<Value, Failure> + 'l;

/// Returns `template.format(arguments)`.
pub fn braces(
    template: &str,
    arguments: &Arguments,
    lookup: &mut Lookup<'_>,
    meter: &Meter,
) -> Result<String, Failure> {
    let mut fields = Fields { arguments, lookup, meter, automatic: Some(0) };
    let mut out = Writer::new(meter);
    fields.expand(template, &mut out, true)?;
    Ok(out.finish())
}

struct Fields<'f, 'l> {
    arguments: &'f Arguments,
    lookup: &'f mut Lookup<'l>,
    meter: &'f Meter,
    /// Number of automatically numbered fields so far; `None` after an explicitly numbered one.
    automatic: Option<usize>,
}

impl Fields<'_, '_> {
    fn expand(&mut self, template: &str, out: &mut Writer<'_>, outermost: bool) -> Result<(), Failure> {
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            out.push(&rest[..at])?;
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if outermost && rest.starts_with(brace) {
                out.push(brace)?;
                rest = &rest[1..];
                continue;
            }
            if brace == "}" {
                return Err(Failure::new("Single '}' encountered in format string"));
            }
            let mut open = 1;
            let end = rest.find(|c| {
                open += match c {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                open == 0
            });
            let end = end.ok_or_else(|| Failure::new("expected '}' before end of string"))?;
            self.meter.charge(end)?;
            self.field(&rest[..end], out, outermost)?;
            rest = &rest[end + 1..];
        }
        out.push(rest)
    }

    fn field(&mut self, field: &str, out: &mut Writer<'_>, outermost: bool) -> Result<(), Failure> {
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head.split_once('!').unwrap_or((head, ""));
        let value = self.value(name)?;
        let value = match conversion {
            "" => value,
            "s" => text_of(&value, self.meter)?.into(),
            "r" => repr_of(&value, self.meter)?.into(),
            "a" => ascii(&repr_of(&value, self.meter)?).into(),
            _ => return Err(Failure::new("unknown conversion specifier")),
        };
        let spec = if spec.contains('{') && outermost {
            let mut expanded = Writer::new(self.meter);
            self.expand(spec, &mut expanded, false)?;
            expanded.finish()
        } else {
            spec.to_owned()
        };
        Spec::parse(&spec)?.value(&value, spec.is_empty(), out)
    }

    fn value(&mut self, name: &str) -> Result<Value, Failure> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let missing = || Failure::new(format!("missing argument `{first}` for a format string"));
        let mixed = || Failure::new("a format string cannot mix automatic and manual field numbering");
        self.meter.charge(self.arguments.named.len())?;
        let mut value = if first.is_empty() {
            let index = self.automatic.ok_or_else(mixed)?;
            self.automatic = Some(index + 1);
            self.arguments.positional.get(index).cloned()
        } else if let Ok(index) = first.parse::<usize>() {
            if self.automatic.is_some_and(|fields| fields > 0) {
                return Err(mixed());
            }
            self.automatic = None;
            self.arguments.positional.get(index).cloned()
        } else {
            self.arguments.get(first).cloned()
        }
        .ok_or_else(missing)?;
        while !rest.is_empty() {
            let bad = || Failure::new("invalid field name in a format string");
            let (key, bracketed) = match rest.strip_prefix('[') {
                Some(inner) => {
                    let (key, after) = inner.split_once(']').ok_or_else(bad)?;
                    rest = after;
                    (key, true)
                }
                None => {
                    let inner = rest.strip_prefix('.').ok_or_else(bad)?;
                    let end = inner.find(['.', '[']).unwrap_or(inner.len());
                    rest = &inner[end..];
                    (&inner[..end], false)
                }
            };
            let key = match key.parse::<i128>() {
                Ok(index) if bracketed => Value::Int(index),
                _ => Value::from(key),
            };
            value = (self.lookup)(&value, &key, bracketed)?;
        }
        Ok(value)
    }
}
