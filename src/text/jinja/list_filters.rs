//! Filters for lists.

use super::{
    Failure,
    arguments::Arguments,
    interpreter::Interpreter,
    meter::{ITEM, Writer},
    methods,
    objects::Object,
    operators,
    sorting::sort_by,
    syntax::Binary,
    value::{Dict, Seq, SeqKind, Value},
};

/// A path of attributes: the parts between the dots.
type Path = Vec<Value>;

impl Interpreter<'_> {
    /// Returns `value | name(arguments)` for an iterable value.
    pub(super) fn list_filter(&mut self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Failure> {
        let meter = self.meter;
        match name {
            "first" => {
                if let Some(Object::Generator(items)) = self.object(&value) {
                    return Ok(items
                        .pop_front()
                        .unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")));
                }
                if let Value::Seq(seq) = &value {
                    let none = || Value::undefined("No first item, sequence was empty.");
                    return Ok(seq.items.first().cloned().unwrap_or_else(none));
                }
                let first = self.items_of(&value)?.into_iter().next();
                Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
            }
            "last" => {
                if let Value::Object(_) | Value::None = value {
                    return Err(Failure::new(format!("'{}' object is not reversible", value.type_name())));
                }
                if let Value::Seq(seq) = &value {
                    let none = || Value::undefined("No last item, sequence was empty.");
                    return Ok(seq.items.last().cloned().unwrap_or_else(none));
                }
                let last = self.items_of(&value)?.pop();
                Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
            }
            "list" => Seq::list(self.items_of(&value)?, meter),
            "reverse" => match &value {
                Value::Str(text) => {
                    meter.charge_for(text.len(), 4)?;
                    Ok(text.chars().rev().collect::<String>().into())
                }
                _ => {
                    let mut items = self.items_of(&value)?;
                    items.reverse();
                    self.generator(items)
                }
            },
            "join" => self.joined(&value, &arguments),
            "sum" => {
                let [attribute, start] = arguments.bind(name, ["attribute", "start"], 0)?;
                let items = self.attributes(&value, attribute.as_ref())?;
                let start = start.unwrap_or(Value::Int(0));
                if start.as_str().is_some() {
                    return Err(Failure::new("sum() can't sum strings"));
                }
                items.iter().try_fold(start, |sum, item| operators::binary(&sum, Binary::Add, item, meter))
            }
            "min" | "max" => {
                let [cased, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
                let mut best: Option<(Value, Value)> = None;
                for item in self.items_of(&value)? {
                    let key = self.key(&item, attribute.as_ref(), cased.as_ref(), None)?;
                    let better = match &best {
                        None => true,
                        Some((_, than)) if name == "min" => self.is_less(&key, than)?,
                        Some((_, than)) => self.is_less(than, &key)?,
                    };
                    if better {
                        best = Some((item, key));
                    }
                }
                Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(item, _)| item))
            }
            "unique" => {
                let [cased, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
                let mut seen = Dict::default();
                let mut kept = Vec::new();
                for item in self.items_of(&value)? {
                    let key = self.key(&item, attribute.as_ref(), cased.as_ref(), None)?;
                    if seen.get(&key, meter)?.is_none() {
                        seen.insert(key, Value::None, meter)?;
                        kept.push(item);
                    }
                }
                self.generator(kept)
            }
            "sort" => {
                let [reverse, cased, attribute] =
                    arguments.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
                let paths = match &attribute {
                    Some(Value::Str(names)) => names.split(',').map(path_of).collect(),
                    Some(Value::Int(index)) => vec![vec![Value::Int(*index)]],
                    _ => vec![Path::new()],
                };
                let mut keyed = Vec::new();
                for item in self.items_of(&value)? {
                    let mut keys = Vec::new();
                    for path in &paths {
                        let key = self.follow(&item, path, None)?;
                        keys.push(if is_true(&cased) { key } else { self.lowered(key)? });
                    }
                    // Jinja2 always builds a list key. Python does not order two keys that are equal.
                    keyed.push((Seq::list(keys, meter)?, item));
                }
                let items = self.sorted(keyed, is_true(&reverse))?;
                Seq::list(items.into_iter().map(|(_, item)| item).collect(), meter)
            }
            "dictsort" => {
                let [cased, by, reverse] = arguments.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
                let Value::Dict(dict) = &value else {
                    return Err(Failure::new(format!("'{}' object has no items to sort", value.type_name())));
                };
                let index = match by.as_ref().map(Value::as_str) {
                    None | Some(Some("key")) => 0,
                    Some(Some("value")) => 1,
                    _ => return Err(Failure::new("You can only sort by either \"key\" or \"value\"")),
                };
                let mut keyed = Vec::new();
                let pairs = methods::pairs(dict, SeqKind::List, meter)?;
                for pair in self.items_of(&pairs)? {
                    let key = self.item(&pair, &Value::Int(index))?;
                    keyed.push((if is_true(&cased) { key } else { self.lowered(key)? }, pair));
                }
                let items = self.sorted(keyed, is_true(&reverse))?;
                Seq::list(items.into_iter().map(|(_, pair)| pair).collect(), meter)
            }
            "groupby" => self.grouped(&value, &arguments),
            "batch" => {
                let [count, fill] = arguments.bind(name, ["linecount", "fill_with"], 1)?;
                let count = size(count)?;
                let mut rows = Vec::new();
                for chunk in self.items_of(&value)?.chunks(count.max(1)) {
                    let mut row = chunk.to_vec();
                    if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
                        meter.charge_for(count - row.len(), ITEM)?;
                        row.resize(count, fill.clone());
                    }
                    rows.push(Seq::list(row, meter)?);
                }
                self.generator(rows)
            }
            "slice" => {
                let [count, fill] = arguments.bind(name, ["slices", "fill_with"], 1)?;
                let count = size(count)?;
                let items = self.items_of(&value)?;
                if count == 0 {
                    return Err(Failure::new("integer division or modulo by zero"));
                }
                meter.charge_for(count, ITEM)?;
                let (each, more) = (items.len() / count, items.len() % count);
                let mut rest = &items[..];
                let mut columns = Vec::new();
                for column in 0..count {
                    let (column_items, after) = rest.split_at(each + usize::from(column < more));
                    rest = after;
                    let fill = fill.iter().filter(|fill| column >= more && !matches!(fill, Value::None));
                    columns.push(Seq::list(column_items.iter().chain(fill).cloned().collect(), meter)?);
                }
                self.generator(columns)
            }
            "map" => self.mapped(&value, arguments),
            "select" | "reject" | "selectattr" | "rejectattr" => self.selected(name, &value, arguments),
            _ => Err(Failure::new(format!("unknown filter `{name}`"))),
        }
    }

    fn joined(&mut self, value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
        let [separator, attribute] = arguments.bind("join", ["d", "attribute"], 0)?;
        let separator = self.text_of(&separator.unwrap_or_else(|| "".into()))?;
        let mut out = Writer::new(self.meter);
        for (i, item) in self.attributes(value, attribute.as_ref())?.iter().enumerate() {
            out.push(if i > 0 { &separator } else { "" })?;
            out.push(&self.text_of(item)?)?;
        }
        Ok(out.finish().into())
    }

    /// Returns an attribute of each item, or the items themselves.
    fn attributes(&mut self, value: &Value, attribute: Option<&Value>) -> Result<Vec<Value>, Failure> {
        let items = self.items_of(value)?;
        let Some(path) = attribute.filter(|attribute| !matches!(attribute, Value::None)).map(path_to) else {
            return Ok(items);
        };
        items.iter().map(|item| self.follow(item, &path, None)).collect()
    }

    fn follow(&mut self, item: &Value, path: &Path, default: Option<&Value>) -> Result<Value, Failure> {
        let mut value = item.clone();
        for part in path {
            value = self.item(&value, part)?;
            if let (false, Some(default)) = (value.is_defined(), default) {
                value = default.clone();
            }
        }
        Ok(value)
    }

    /// Returns the sort key of an item.
    fn key(
        &mut self,
        item: &Value,
        attribute: Option<&Value>,
        cased: Option<&Value>,
        default: Option<&Value>,
    ) -> Result<Value, Failure> {
        let path = attribute.filter(|attribute| !matches!(attribute, Value::None)).map(path_to).unwrap_or_default();
        let key = self.follow(item, &path, default)?;
        if cased.is_some_and(Value::is_true) { Ok(key) } else { self.lowered(key) }
    }

    fn lowered(&self, key: Value) -> Result<Value, Failure> {
        let Value::Str(text) = &key else { return Ok(key) };
        self.meter.charge_for(text.len(), 4)?;
        Ok(text.to_lowercase().into())
    }

    fn sorted(&self, keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>, Failure> {
        self.meter.charge_for(keyed.len(), 4 * ITEM)?;
        let mut keyed = keyed;
        if reverse {
            keyed.reverse(); // so that reversing keeps the order of equal items
        }
        let mut sorted = sort_by(keyed, |a, b| self.is_less(&a.0, &b.0))?;
        if reverse {
            sorted.reverse();
        }
        Ok(sorted)
    }

    fn grouped(&mut self, value: &Value, arguments: &Arguments) -> Result<Value, Failure> {
        let [attribute, default, cased] = arguments.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let mut keyed = Vec::new();
        for item in self.items_of(value)? {
            keyed.push((self.key(&item, attribute.as_ref(), cased.as_ref(), default.as_ref())?, item));
        }
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in self.sorted(keyed, false)? {
            match groups.last_mut() {
                Some((of, items)) if operators::equal(of, &key, self.meter)? => items.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let mut found = Vec::new();
        for (key, items) in groups {
            let shown = self.key(&items[0], attribute.as_ref(), Some(&Value::Bool(true)), default.as_ref())?;
            let key = if is_true(&cased) { key } else { shown };
            let items = Seq::list(items, self.meter)?;
            found.push(Seq::of(SeqKind::Group, vec![key, items], self.meter)?);
        }
        Seq::list(found, self.meter)
    }

    fn mapped(&mut self, value: &Value, mut arguments: Arguments) -> Result<Value, Failure> {
        let items = if value.is_true() { self.items_of(value)? } else { Vec::new() };
        let mut made = Vec::new();
        if arguments.positional.is_empty() {
            let [attribute, default] = arguments.bind("map", ["attribute", "default"], 1)?;
            let path = path_to(&attribute.unwrap_or(Value::None));
            let default = default.filter(|default| !matches!(default, Value::None));
            for item in items {
                made.push(self.follow(&item, &path, default.as_ref())?);
            }
        } else {
            let filter = self.text_of(&arguments.positional.remove(0))?;
            for item in items {
                self.meter.charge_for(arguments.positional.len() + arguments.named.len() + 1, ITEM)?;
                let arguments = Arguments { positional: arguments.positional.clone(), named: arguments.named.clone() };
                made.push(self.deeper(|this| this.filter(&filter, item, arguments))?);
            }
        }
        self.generator(made)
    }

    fn selected(&mut self, name: &str, value: &Value, mut arguments: Arguments) -> Result<Value, Failure> {
        let items = if value.is_true() { self.items_of(value)? } else { Vec::new() };
        let path = match name {
            "selectattr" | "rejectattr" => {
                if arguments.positional.is_empty() {
                    return Err(Failure::new("Missing parameter for attribute name"));
                }
                path_to(&arguments.positional.remove(0))
            }
            _ => Path::new(),
        };
        let test =
            if arguments.positional.is_empty() { None } else { Some(self.text_of(&arguments.positional.remove(0))?) };
        let wanted = name.starts_with("select");
        let mut kept = Vec::new();
        for item in items {
            let found = self.follow(&item, &path, None)?;
            let holds = match &test {
                Some(test) => self.test(test, &found, &arguments)?,
                None => found.is_true(),
            };
            if holds == wanted {
                kept.push(item);
            }
        }
        self.generator(kept)
    }
}

fn is_true(flag: &Option<Value>) -> bool {
    flag.as_ref().is_some_and(Value::is_true)
}

fn size(count: Option<Value>) -> Result<usize, Failure> {
    let count =
        count.and_then(|count| count.as_int()).ok_or_else(|| Failure::new("the number of items must be an integer"))?;
    usize::try_from(count).map_err(|_| Failure::new("the number of items is negative or too large"))
}

fn path_to(attribute: &Value) -> Path {
    match attribute {
        Value::Str(names) => path_of(names),
        other => vec![other.clone()],
    }
}

fn path_of(names: &str) -> Path {
    let part = |part: &str| match part.parse::<i128>() {
        Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
        _ => part.into(),
    };
    names.split('.').map(part).collect()
}
