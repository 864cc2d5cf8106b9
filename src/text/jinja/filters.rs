//! Filters for strings, numbers and single values. [`super::list_filters`] has those for lists.

use super::{
    Failure,
    arguments::Arguments,
    format,
    interpreter::Interpreter,
    json,
    meter::{ITEM, Writer},
    methods,
    objects::Object,
    operators::{self, too_large},
    python,
    syntax::Binary,
    texts,
    value::{SeqKind, Value},
};

/// The names of all filters, sorted.
pub const FILTERS: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

impl Interpreter<'_> {
    /// Returns `value | name(arguments)`.
    pub(super) fn filter(&mut self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Failure> {
        let meter = self.meter;
        match name {
            "default" | "d" => {
                let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
                let counts =
                    value.is_defined() && (value.is_true() || !boolean.is_some_and(|boolean| boolean.is_true()));
                Ok(if counts { value } else { default.unwrap_or_else(|| "".into()) })
            }
            "tojson" => json::to_json(&value, &arguments, meter).map(Value::from),
            "string" | "safe" => {
                arguments.bind(name, [], 0)?;
                self.text_of(&value).map(Value::from)
            }
            "upper" | "lower" | "capitalize" => texts::call(&self.text_of(&value)?, name, &arguments, meter),
            "trim" => texts::strip(&self.text_of(&value)?, "strip", &arguments, meter),
            "title" => {
                let text = self.text_of(&value)?;
                meter.charge_for(text.len(), 24)?;
                Ok(titled(&text).into())
            }
            "center" => {
                let [width] = arguments.bind(name, ["width"], 0)?;
                let width = width.unwrap_or(Value::Int(80));
                let arguments = Arguments { positional: vec![width], named: Vec::new() };
                texts::call(&self.text_of(&value)?, "center", &arguments, meter)
            }
            "replace" => self.replaced(&value, &arguments),
            "indent" => self.indented(&value, &arguments),
            "truncate" => self.truncated(&value, &arguments),
            "format" => self.formatted(&value, arguments),
            "escape" | "e" | "forceescape" => {
                let mut out = Writer::new(meter);
                for c in self.text_of(&value)?.chars() {
                    match c {
                        '&' => out.push("&amp;")?,
                        '<' => out.push("&lt;")?,
                        '>' => out.push("&gt;")?,
                        '"' => out.push("&#34;")?,
                        '\'' => out.push("&#39;")?,
                        c => out.push_char(c)?,
                    }
                }
                Ok(out.finish().into())
            }
            "striptags" => {
                let text = self.text_of(&value)?;
                striptags(&text, meter)
            }
            "urlencode" => self.urlencoded(&value),
            "wordcount" => {
                let text = self.text_of(&value)?;
                meter.charge_for(text.len(), 4)?;
                let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
                Ok(words.count().into())
            }
            "int" => int(&value, &arguments),
            "float" => {
                let [default] = arguments.bind(name, ["default"], 0)?;
                let found = match &value {
                    Value::Str(text) => python::parse_float(text),
                    _ => value.as_float(),
                };
                value.check_defined()?;
                Ok(found.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
            "abs" => match (value.as_int(), &value) {
                (Some(int), _) => Ok(Value::Int(int.checked_abs().ok_or_else(too_large)?)),
                (None, Value::Float(float)) => Ok(Value::Float(float.abs())),
                _ => Err(Failure::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
            },
            "round" => round(&value, &arguments),
            "filesizeformat" => filesize(&value, &arguments),
            "attr" => {
                let [attribute] = arguments.bind(name, ["name"], 1)?;
                let attribute = attribute.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                if let (Value::Dict(_), false) = (&value, methods::exists(&value, &attribute)) {
                    return Ok(Value::undefined(format!("'dict object' has no attribute '{attribute}'")));
                }
                self.attribute(&value, &attribute)
            }
            "items" => match &value {
                Value::Undefined(_) => self.generator(Vec::new()),
                Value::Dict(dict) => {
                    let pairs = methods::pairs(dict, SeqKind::List, meter)?;
                    let pairs = self.items_of(&pairs)?;
                    self.generator(pairs)
                }
                _ => Err(Failure::new("Can only get item pairs from a mapping.")),
            },
            "length" | "count" => self.length(&value).map(Value::from),
            _ => self.list_filter(name, value, arguments),
        }
    }

    /// Returns an iterator that can be consumed once.
    pub(super) fn generator(&mut self, items: Vec<Value>) -> Result<Value, Failure> {
        self.meter.charge_for(items.len(), ITEM)?;
        self.hold(Object::Generator(items.into()))
    }

    /// Returns `len(value)`.
    pub(super) fn length(&self, value: &Value) -> Result<usize, Failure> {
        match value {
            Value::Undefined(_) => Ok(0),
            Value::Str(text) => {
                self.meter.charge(text.len())?;
                Ok(text.chars().count())
            }
            Value::Seq(seq) => Ok(seq.items.len()),
            Value::Dict(dict) => Ok(dict.len()),
            _ => Err(Failure::new(format!("object of type '{}' has no len()", value.type_name()))),
        }
    }

    fn replaced(&mut self, value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
        let [old, new, count] = arguments.bind("replace", ["old", "new", "count"], 2)?;
        let count = match count {
            None | Some(Value::None) => -1,
            Some(count) => count.as_int().ok_or_else(|| Failure::new("replace: count must be an integer"))?,
        };
        let [text, old, new] =
            [value, &old.unwrap_or(Value::None), &new.unwrap_or(Value::None)].map(|v| self.text_of(v));
        texts::replace(&text?, &old?, &new?, count, self.meter).map(Value::from)
    }

    fn indented(&mut self, value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
        let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
        let [first, blank] = [first, blank].map(|flag| flag.is_some_and(|flag| flag.is_true()));
        let Value::Str(text) = value else {
            value.check_defined()?;
            return Err(Failure::new(format!("'{}' object cannot be indented", value.type_name())));
        };
        let mut out = Writer::new(self.meter);
        let indent = match width {
            Some(Value::Str(text)) => text.to_string(),
            width => {
                let width = width.map_or(Some(4), |width| width.as_int());
                let width = width.ok_or_else(|| Failure::new("indent: width must be an integer"))?;
                let mut text = Writer::new(self.meter);
                text.repeat(" ", usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
                text.finish()
            }
        };
        self.meter.charge_for(text.len(), 4)?;
        let whole = format!("{text}\n");
        for (i, (line, _)) in texts::lines(&whole, self.meter)?.into_iter().enumerate() {
            let line = &whole[line];
            let indents = if i == 0 { first } else { blank || !line.is_empty() };
            out.push(if i > 0 { "\n" } else { "" })?;
            out.push(if indents { &indent } else { "" })?;
            out.push(line)?;
        }
        Ok(out.finish().into())
    }

    fn truncated(&mut self, value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
        let [length, killwords, end, leeway] =
            arguments.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
        let number = |value: Option<Value>, default: i128| match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => value.as_int().ok_or_else(|| Failure::new("truncate: lengths must be integers")),
        };
        let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
        let end = self.text_of(&end.unwrap_or_else(|| "...".into()))?;
        let available = length - end.chars().count() as i128;
        if available < 0 || leeway < 0 {
            return Err(Failure::new("truncate: length must not be less than the length of `end`"));
        }
        let Value::Str(text) = value else {
            if self.length(value)? as i128 <= length.saturating_add(leeway) {
                return Ok(value.clone());
            }
            return Err(Failure::new(format!("object of type '{}' cannot be truncated", value.type_name())));
        };
        if self.length(value)? as i128 <= length.saturating_add(leeway) {
            return Ok(value.clone());
        }
        let available = usize::try_from(available).unwrap_or(usize::MAX);
        let cut = text.char_indices().nth(available).map_or(text.len(), |(at, _)| at);
        let mut kept = &text[..cut];
        if !killwords.is_some_and(|kill| kill.is_true()) {
            kept = kept.rfind(' ').map_or(kept, |at| &kept[..at]);
        }
        operators::binary(&kept.into(), Binary::Add, &end.into(), self.meter)
    }

    fn formatted(&mut self, value: &Value, arguments: Arguments) -> Result<Value, Failure> {
        let template = self.text_of(value)?;
        if !arguments.named.is_empty() {
            if !arguments.positional.is_empty() {
                return Err(Failure::new("can't handle positional and keyword arguments at the same time"));
            }
            let named = arguments.named.into_iter().map(|(name, value)| (Value::Str(name), value));
            let named = self.dict_of(named)?;
            return format::percent(&template, &named, self.meter).map(Value::from);
        }
        let tuple = super::value::Seq::of(SeqKind::Tuple, arguments.positional, self.meter)?;
        format::percent(&template, &tuple, self.meter).map(Value::from)
    }

    fn urlencoded(&mut self, value: &Value) -> Result<Value, Failure> {
        let pairs = match value {
            Value::Str(_) => None,
            Value::Dict(dict) => Some(methods::pairs(dict, SeqKind::List, self.meter)?),
            Value::Seq(_) => Some(value.clone()),
            _ => None,
        };
        let mut out = Writer::new(self.meter);
        let Some(pairs) = pairs else {
            quote(&self.text_of(value)?, "/", &mut out)?;
            return Ok(out.finish().into());
        };
        for (i, pair) in self.items_of(&pairs)?.iter().enumerate() {
            let pair = self.items_of(pair)?;
            let [key, value] = &pair[..] else { return Err(Failure::new("urlencode: expected pairs")) };
            out.push(if i > 0 { "&" } else { "" })?;
            quote(&self.text_of(key)?, "+", &mut out)?;
            out.push("=")?;
            quote(&self.text_of(value)?, "+", &mut out)?;
        }
        Ok(out.finish().into())
    }
}

/// Appends the percent-encoded `text`; `plain` is `/` where slashes are kept, or `+` where spaces become `+`.
fn quote(text: &str, plain: &str, out: &mut Writer<'_>) -> Result<(), Failure> {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push_char(byte.into())?,
            b'/' if plain == "/" => out.push("/")?,
            b' ' if plain == "+" => out.push("+")?,
            byte => {
                out.meter().charge(16)?;
                out.push(&format!("%{byte:02X}"))?;
            }
        }
    }
    Ok(())
}

/// Returns `text` in title case; words begin after brackets, spaces and hyphens.
fn titled(text: &str) -> String {
    let mut made = String::new();
    let mut rest = text;
    let starts = |c: char| python::is_space(c) || "-({[<".contains(c);
    while !rest.is_empty() {
        let end = if rest.starts_with(starts) { rest.find(|c| !starts(c)) } else { rest.find(starts) };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        made += &texts::capitalized(word);
        rest = after;
    }
    made
}

fn striptags(text: &str, meter: &super::meter::Meter) -> Result<Value, Failure> {
    meter.charge_for(text.len(), 8)?;
    let mut kept = String::new();
    let mut rest = text;
    // Remove comments before tags.
    while let Some(at) = rest.find("<!--") {
        let Some(end) = rest[at..].find("-->") else { break };
        kept += &rest[..at];
        rest = &rest[at + end + 3..];
    }
    kept += rest;
    let mut plain = String::new();
    let mut rest = &*kept;
    while let Some(at) = rest.find('<') {
        let Some(end) = rest[at..].find('>') else { break };
        plain += &rest[..at];
        rest = &rest[at + end + 1..];
    }
    plain += rest;
    let words: Vec<_> = plain.split(python::is_space).filter(|word| !word.is_empty()).collect();
    let text = words.join(" ");
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    Ok(entities.iter().fold(text, |text, (entity, plain)| text.replace(entity, plain)).into())
}

fn int(value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
    let [default, base] = arguments.bind("int", ["default", "base"], 0)?;
    value.check_defined()?;
    let base = base.map_or(Some(10), |base| base.as_int()).and_then(|base| u32::try_from(base).ok());
    let base = base.filter(|base| *base == 0 || (2..=36).contains(base));
    let truncated = |float: f64| {
        float.is_finite().then(|| if float.abs() < 1e38 { Ok(float.trunc() as i128) } else { Err(too_large()) })
    };
    let found = match value {
        Value::Str(text) => match base.and_then(|base| python::parse_int(text, base)) {
            Some(int) => Some(Ok(int)),
            None => python::parse_float(text).and_then(truncated),
        },
        Value::Float(float) => truncated(*float),
        _ => value.as_int().map(Ok),
    };
    found.map_or_else(|| Ok(default.unwrap_or(Value::Int(0))), |found| found.map(Value::Int))
}

fn round(value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
    let [precision, method] = arguments.bind("round", ["precision", "method"], 0)?;
    let precision = precision.map_or(Some(0), |precision| precision.as_int());
    let precision =
        precision.and_then(|p| i32::try_from(p).ok()).ok_or_else(|| Failure::new("round: bad precision"))?;
    let method = method.unwrap_or_else(|| "common".into());
    let number =
        value.as_float().ok_or_else(|| Failure::new(format!("type {} doesn't define round", value.type_name())))?;
    let scale = 10f64.powi(precision);
    match method.as_str() {
        Some("common") => match value.as_int() {
            Some(int) if precision >= 0 => Ok(Value::Int(int)),
            Some(int) => {
                let unit = 10i128.checked_pow(precision.unsigned_abs()).ok_or_else(too_large)?;
                let (down, rest) = (int.div_euclid(unit), int.rem_euclid(unit));
                let up = 2 * rest > unit || 2 * rest == unit && down % 2 != 0;
                Ok(Value::Int((down + i128::from(up)).checked_mul(unit).ok_or_else(too_large)?))
            }
            None if (0..=300).contains(&precision) && number.is_finite() => {
                let decimals = precision.unsigned_abs() as usize;
                Ok(Value::Float(format!("{number:.decimals$}").parse().unwrap_or(number)))
            }
            None if !number.is_finite() || precision > 300 => Ok(value.clone()),
            None => Ok(Value::Float((number * scale).round_ties_even() / scale)),
        },
        Some("ceil" | "floor") => {
            let scaled = number * scale;
            let whole = if method.as_str() == Some("ceil") { scaled.ceil() } else { scaled.floor() };
            if !whole.is_finite() {
                return Err(Failure::new("cannot convert float to integer"));
            }
            Ok(Value::Float(whole / scale))
        }
        _ => Err(Failure::new("method must be common, ceil or floor")),
    }
}

fn filesize(value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
    let [binary] = arguments.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let bytes = match value {
        Value::Str(text) => python::parse_float(text),
        _ => value.as_float(),
    };
    let bytes = bytes.ok_or_else(|| Failure::new("filesizeformat: no number"))?;
    let (base, unit) = if binary { (1024f64, "iB") } else { (1000f64, "B") };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()).into());
    }
    let prefixes = if binary { "KMGTPEZY" } else { "kMGTPEZY" };
    let mut power = 2;
    while power < 9 && bytes >= base.powi(power) {
        power += 1;
    }
    let prefix = prefixes.chars().nth(usize::try_from(power - 2).unwrap_or_default()).unwrap_or('Y');
    Ok(format!("{:.1} {prefix}{unit}", base * bytes / base.powi(power)).into())
}
