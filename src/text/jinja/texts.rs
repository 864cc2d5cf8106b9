//! Methods of strings.

use super::{
    Failure,
    arguments::Arguments,
    meter::{ITEM, Meter, Writer},
    python::{is_printable, is_space},
    value::{Seq, SeqKind, Value},
};

/// The names of all methods.
pub const METHODS: [&str; 44] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Calls a method of the string `text`.
pub fn call(text: &str, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    meter.charge_for(text.len(), 4)?;
    let is = |holds: bool| Ok(Value::Bool(holds));
    let all = |test: fn(char) -> bool| is(!text.is_empty() && text.chars().all(test));
    let plain = |made: String| -> Result<Value, Failure> {
        arguments.bind(name, [], 0)?;
        meter.charge(made.len())?;
        Ok(made.into())
    };
    match name {
        "lower" => plain(text.to_lowercase()),
        "upper" => plain(text.to_uppercase()),
        "casefold" => plain(text.to_lowercase().replace('ß', "ss").replace('ς', "σ")),
        "capitalize" => plain(capitalized(text)),
        "title" => plain(titled(text)),
        "swapcase" => plain(text.chars().map(swapped).collect()),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => is(text.is_ascii()),
        "isdecimal" | "isdigit" => all(|c| c.is_numeric() && (c.is_ascii_digit() || !c.is_ascii() && is_decimal(c))),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => is(text.chars().all(is_printable)),
        "isidentifier" => is(text.starts_with(|c: char| c == '_' || c.is_alphabetic())
            && text.chars().all(|c| c == '_' || c.is_alphanumeric())),
        "islower" => is(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)),
        "isupper" => is(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)),
        "istitle" => is(text.chars().any(|c| c.is_uppercase() || c.is_lowercase()) && titled(text) == text),
        "strip" | "lstrip" | "rstrip" => strip(text, name, arguments, meter),
        "startswith" | "endswith" => affix(text, name, arguments, meter),
        "removeprefix" | "removesuffix" => {
            let part = one_text(name, arguments)?;
            let rest = if name == "removeprefix" { text.strip_prefix(&*part) } else { text.strip_suffix(&*part) };
            plain_text(rest.unwrap_or(text), meter)
        }
        "split" | "rsplit" => split(text, name == "rsplit", arguments, meter),
        "splitlines" => {
            let [keep] = arguments.bind(name, ["keepends"], 0)?;
            let keep = keep.is_some_and(|keep| keep.is_true());
            strings(
                lines(text, meter)?
                    .into_iter()
                    .map(|(line, end)| if keep { &text[line.start..end] } else { &text[line] }),
                meter,
            )
        }
        "partition" | "rpartition" => {
            let separator = one_text(name, arguments)?;
            if separator.is_empty() {
                return Err(Failure::new("empty separator"));
            }
            let found = if name == "partition" { text.find(&*separator) } else { text.rfind(&*separator) };
            let parts = match found {
                Some(at) => [&text[..at], &separator, &text[at + separator.len()..]],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            let parts = parts.iter().map(|part| plain_text(part, meter)).collect::<Result<_, _>>()?;
            Seq::of(SeqKind::Tuple, parts, meter)
        }
        "replace" => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let count = count.map_or(Some(-1), |count| count.as_int());
            match (old, new, count) {
                (Some(Value::Str(old)), Some(Value::Str(new)), Some(count)) => {
                    replace(text, &old, &new, count, meter).map(Value::from)
                }
                _ => Err(Failure::new("replace() argument must be str")),
            }
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, arguments, meter),
        "center" | "ljust" | "rjust" | "zfill" => justify(text, name, arguments, meter),
        _ => {
            let [size] = arguments.bind(name, ["tabsize"], 0)?;
            expand_tabs(text, size.and_then(|size| size.as_int()).unwrap_or(8), meter)
        }
    }
}

fn is_decimal(c: char) -> bool {
    // Digits of any script; fractions and the like are numeric but not digits.
    !matches!(c, '¼'..='¾' | '\u{2150}'..='\u{218b}' | '\u{2460}'..='\u{249b}' | '\u{3007}' | '\u{3021}'..='\u{3029}')
        && c.is_numeric()
        && !c.is_alphabetic()
}

/// Returns `text` as a value.
pub fn plain_text(text: &str, meter: &Meter) -> Result<Value, Failure> {
    meter.charge(text.len())?;
    Ok(text.into())
}

fn strings<'s>(parts: impl Iterator<Item = &'s str>, meter: &Meter) -> Result<Value, Failure> {
    let mut items = Vec::new();
    for part in parts {
        meter.charge(ITEM)?;
        items.push(plain_text(part, meter)?);
    }
    Seq::list(items, meter)
}

fn one_text(name: &str, arguments: &Arguments) -> Result<std::sync::Arc<str>, Failure> {
    match arguments.bind(name, ["text"], 1)? {
        [Some(Value::Str(text))] => Ok(text),
        _ => Err(Failure::new(format!("{name}() argument must be str"))),
    }
}

/// Returns `text` with its first character in upper case and the rest in lower case.
pub fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

fn titled(text: &str) -> String {
    let mut made = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            made.extend(c.to_lowercase());
        } else {
            made.extend(c.to_uppercase());
        }
        inside = c.is_lowercase() || c.is_uppercase() || c.is_alphabetic() && swapped(c) != c;
    }
    made
}

fn swapped(c: char) -> char {
    let single = |mut other: Box<dyn Iterator<Item = char>>| other.next().unwrap_or(c);
    if c.is_uppercase() {
        single(Box::new(c.to_lowercase()))
    } else if c.is_lowercase() {
        single(Box::new(c.to_uppercase()))
    } else {
        c
    }
}

/// Removes white space, or the given characters, from the ends of `text`.
pub fn strip(text: &str, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    let [chars] = arguments.bind(name, ["chars"], 0)?;
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars),
        Some(_) => return Err(Failure::new(format!("{name} arg must be None or str"))),
    };
    if let Some(chars) = &chars {
        meter.charge_for(text.len(), chars.len())?;
    }
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(goes) };
    plain_text(if name == "lstrip" { text } else { text.trim_end_matches(goes) }, meter)
}

/// Converts `start` and `end` to a byte range of the string.
fn range(text: &str, start: Option<Value>, end: Option<Value>) -> Result<Option<std::ops::Range<usize>>, Failure> {
    let length = text.chars().count() as i128;
    let bound = |value: Option<Value>, default: i128| match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => {
            let at = value.as_int().ok_or_else(|| Failure::new("slice indices must be integers or None"))?;
            Ok(if at < 0 { at.saturating_add(length).max(0) } else { at })
        }
    };
    let (start, end) = (bound(start, 0)?, bound(end, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i128| {
        let at = usize::try_from(at).unwrap_or_default();
        text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some(byte(start)..byte(end)))
}

fn affix(text: &str, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    let [affix, start, end] = arguments.bind(name, ["prefix", "start", "end"], 1)?;
    let Some(range) = range(text, start, end)? else { return Ok(Value::Bool(false)) };
    let text = &text[range];
    let bad = || Failure::new(format!("{name} first arg must be str or a tuple of str"));
    let fits = |affix: &Value| -> Result<bool, Failure> {
        let affix = affix.as_str().ok_or_else(bad)?;
        meter.charge(ITEM / 4)?;
        Ok(if name == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) })
    };
    let fits = match &affix {
        Some(Value::Seq(seq)) if seq.kind == SeqKind::Tuple => {
            let mut any = false;
            for affix in &seq.items {
                any = any || fits(affix)?;
            }
            any
        }
        Some(affix) => fits(affix)?,
        None => false,
    };
    Ok(Value::Bool(fits))
}

fn split(text: &str, from_end: bool, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    let [separator, max_splits] = arguments.bind("split", ["sep", "maxsplit"], 0)?;
    let max_splits = match max_splits {
        None => -1,
        Some(max_splits) => max_splits.as_int().ok_or_else(|| Failure::new("maxsplit must be an integer"))?,
    };
    let max_splits = usize::try_from(max_splits).unwrap_or(usize::MAX);
    let parts = max_splits.saturating_add(1);
    let separator = match separator {
        None | Some(Value::None) => return split_words(text, from_end, max_splits, meter),
        Some(Value::Str(separator)) if separator.is_empty() => return Err(Failure::new("empty separator")),
        Some(Value::Str(separator)) => separator,
        Some(_) => return Err(Failure::new("must be str or None, not another type")),
    };
    meter.charge(separator.len())?;
    if !from_end {
        return strings(text.splitn(parts, &*separator), meter);
    }
    let mut found = Vec::new();
    for part in text.rsplitn(parts, &*separator) {
        meter.charge(ITEM)?;
        found.push(part);
    }
    strings(found.into_iter().rev(), meter)
}

fn split_words(text: &str, from_end: bool, max_splits: usize, meter: &Meter) -> Result<Value, Failure> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        meter.charge(ITEM)?;
        if words.len() == max_splits {
            words.push(rest); // with trailing white space
            break;
        }
        if from_end {
            let at = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
            words.push(&rest[at..]);
            rest = &rest[..at];
        } else {
            let at = rest.find(is_space).unwrap_or(rest.len());
            words.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
    if from_end {
        words.reverse();
    }
    strings(words.into_iter(), meter)
}

/// Returns the range of each line and the end of the line break after it.
pub fn lines(text: &str, meter: &Meter) -> Result<Vec<(std::ops::Range<usize>, usize)>, Failure> {
    let mut found = Vec::new();
    let (mut start, mut chars) = (0, text.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        let is_end =
            matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
        if !is_end {
            continue;
        }
        meter.charge(ITEM)?;
        let mut end = at + c.len_utf8();
        if c == '\r' && chars.next_if(|(_, next)| *next == '\n').is_some() {
            end += 1;
        }
        found.push((start..at, end));
        start = end;
    }
    if start < text.len() {
        found.push((start..text.len(), text.len()));
    }
    Ok(found)
}

/// Replaces the first `count` occurrences of `old`, or all of them if `count` is negative.
pub fn replace(text: &str, old: &str, new: &str, count: i128, meter: &Meter) -> Result<String, Failure> {
    meter.charge(text.len() + old.len())?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut out = Writer::new(meter);
    let mut done = 0;
    for (at, found) in text.match_indices(old).take(count) {
        out.push(&text[done..at])?;
        meter.charge(ITEM / 4)?;
        out.push(new)?;
        done = at + found.len();
    }
    out.push(&text[done..])?;
    Ok(out.finish())
}

fn search(text: &str, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    let [part, start, end] = arguments.bind(name, ["sub", "start", "end"], 1)?;
    let Some(Value::Str(part)) = part else { return Err(Failure::new("must be str, not another type")) };
    meter.charge(part.len())?;
    let range = range(text, start, end)?;
    let found = range.as_ref().and_then(|range| {
        let inside = &text[range.clone()];
        let at = if name.starts_with('r') { inside.rfind(&*part) } else { inside.find(&*part) };
        at.map(|at| range.start + at)
    });
    if name == "count" {
        let inside = range.map_or("", |range| &text[range]);
        return Ok(if found.is_some() { inside.matches(&*part).count() } else { 0 }.into());
    }
    match found {
        Some(at) => Ok(text[..at].chars().count().into()),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Failure::new("substring not found")),
    }
}

fn justify(text: &str, name: &str, arguments: &Arguments, meter: &Meter) -> Result<Value, Failure> {
    let [width, fill] = arguments.bind(name, ["width", "fillchar"], 1)?;
    let width = width.and_then(|width| width.as_int()).ok_or_else(|| Failure::new("the width must be an integer"))?;
    let fill = match fill {
        None => " ".into(),
        Some(Value::Str(fill)) if fill.chars().count() == 1 && name != "zfill" => fill,
        Some(_) => return Err(Failure::new("The fill character must be exactly one character long")),
    };
    let length = text.chars().count();
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(length);
    let mut out = Writer::new(meter);
    if name == "zfill" {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        out.push(&text[..text.len() - digits.len()])?;
        out.repeat("0", missing)?;
        out.push(digits)?;
        return Ok(out.finish().into());
    }
    // For an odd width, Python puts the extra space on the left.
    let before = match name {
        "center" => missing / 2 + (missing & width & 1),
        "rjust" => missing,
        _ => 0,
    };
    out.repeat(&fill, before)?;
    out.push(text)?;
    out.repeat(&fill, missing - before)?;
    Ok(out.finish().into())
}

fn expand_tabs(text: &str, size: i128, meter: &Meter) -> Result<Value, Failure> {
    let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
    let mut out = Writer::new(meter);
    let mut column = 0usize;
    for c in text.chars() {
        match c {
            '\t' => {
                let gap = if size == 0 { 0 } else { size - column % size };
                out.repeat(" ", gap)?;
                column += gap;
            }
            c => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push_char(c)?;
            }
        }
    }
    Ok(out.finish().into())
}
