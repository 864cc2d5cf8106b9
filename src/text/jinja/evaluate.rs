//! Evaluation of expressions.

use std::{cmp::Ordering, sync::Arc};

use super::{
    Failure,
    arguments::Arguments,
    functions::FUNCTIONS,
    interpreter::Interpreter,
    meter::{ITEM, STEP, Writer},
    methods,
    objects::Object,
    operators, python,
    syntax::{Args, Expr, Kind},
    value::{Dict, Seq, SeqKind, Value},
};

impl<'t> Interpreter<'t> {
    /// Returns the value of an expression.
    pub(super) fn value(&mut self, expr: &'t Expr, scope: usize) -> Result<Value, Failure> {
        self.deeper(|this| this.evaluate(expr, scope))
    }

    fn evaluate(&mut self, expr: &'t Expr, scope: usize) -> Result<Value, Failure> {
        let meter = self.meter;
        meter.charge(STEP)?;
        Ok(match &*expr.kind {
            Kind::Const(value) => value.clone(),
            Kind::Name(name) => match self.variable(name, scope)? {
                Some(value) => value,
                None => match FUNCTIONS.iter().find(|function| ***function == **name) {
                    Some(function) => Value::Function(function),
                    None => Value::undefined(format!("'{name}' is undefined")),
                },
            },
            Kind::Captured => self.captured.last().cloned().unwrap_or(Value::None),
            Kind::Tuple(items) => Seq::of(SeqKind::Tuple, self.values(items, scope)?, meter)?,
            Kind::List(items) => Seq::list(self.values(items, scope)?, meter)?,
            Kind::Dict(pairs) => {
                let mut dict = Dict::default();
                for (key, value) in pairs {
                    let key = self.value(key, scope)?;
                    dict.insert(key, self.value(value, scope)?, meter)?;
                }
                Value::Dict(Arc::new(dict))
            }
            Kind::Attr(of, name) => {
                let value = self.value(of, scope)?;
                self.attribute(&value, name)?
            }
            Kind::Item(of, index) => {
                let value = self.value(of, scope)?;
                let index = self.value(index, scope)?;
                self.item(&value, &index)?
            }
            Kind::Slice(of, bounds) => {
                let value = self.value(of, scope)?;
                let mut values = [Value::None, Value::None, Value::None];
                for (value, bound) in values.iter_mut().zip(bounds) {
                    if let Some(bound) = bound {
                        *value = self.value(bound, scope)?;
                    }
                }
                operators::slice(&value, &values, meter)?
            }
            Kind::Call(function, arguments) => return self.call_with(function, arguments, scope),
            Kind::Filter(of, name, arguments) => {
                let value = self.value(of, scope)?;
                let arguments = self.arguments(arguments, scope)?;
                self.filter(name, value, arguments)?
            }
            Kind::Test(of, name, arguments) => {
                let value = self.value(of, scope)?;
                let arguments = self.arguments(arguments, scope)?;
                Value::Bool(self.test(name, &value, &arguments)?)
            }
            Kind::Not(of) => Value::Bool(!self.value(of, scope)?.is_true()),
            Kind::Minus(of) | Kind::Plus(of) => {
                let value = self.value(of, scope)?;
                value.check_defined()?;
                let negative = matches!(&*expr.kind, Kind::Minus(_));
                match (value.as_int(), &value) {
                    (Some(int), _) if negative => Value::Int(int.checked_neg().ok_or_else(operators::too_large)?),
                    (Some(int), _) => Value::Int(int),
                    (None, Value::Float(float)) => Value::Float(if negative { -float } else { *float }),
                    _ => return Err(Failure::new(format!("bad operand type for a sign: '{}'", value.type_name()))),
                }
            }
            Kind::Binary(left, operator, right) => {
                let left = self.value(left, scope)?;
                let right = self.value(right, scope)?;
                operators::binary(&left, *operator, &right, meter)?
            }
            Kind::Concat(parts) => {
                let mut out = Writer::new(meter);
                for part in parts {
                    let value = self.value(part, scope)?;
                    out.push(&self.text_of(&value)?)?;
                }
                out.finish().into()
            }
            Kind::Compare(first, others) => {
                let mut left = self.value(first, scope)?;
                for (comparison, right) in others {
                    let right = self.value(right, scope)?;
                    if !operators::compare(&left, *comparison, &right, meter)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Kind::And(left, right) => {
                let left = self.value(left, scope)?;
                if left.is_true() { self.value(right, scope)? } else { left }
            }
            Kind::Or(left, right) => {
                let left = self.value(left, scope)?;
                if left.is_true() { left } else { self.value(right, scope)? }
            }
            Kind::If(test, value, otherwise) => {
                if self.value(test, scope)?.is_true() {
                    self.value(value, scope)?
                } else {
                    match otherwise {
                        Some(otherwise) => self.value(otherwise, scope)?,
                        None => Value::undefined("an inline `if` without `else` has no value here"),
                    }
                }
            }
        })
    }

    fn values(&mut self, items: &'t [Expr], scope: usize) -> Result<Vec<Value>, Failure> {
        items.iter().map(|item| self.value(item, scope)).collect()
    }

    /// Returns `str(value)`, also for objects of the interpreter.
    pub(super) fn text_of(&mut self, value: &Value) -> Result<String, Failure> {
        let Value::Object(id) = value else { return python::text_of(value, self.meter) };
        Ok(match self.objects.get(*id) {
            Some(Object::Macro(of, _)) => format!("<Macro '{}'>", of.name),
            Some(Object::Namespace(attributes)) => {
                let attributes: Vec<_> = attributes.iter().map(|(k, v)| (Value::Str(k.clone()), v.clone())).collect();
                let dict = self.dict_of(attributes.into_iter())?;
                format!("<Namespace {}>", python::text_of(&dict, self.meter)?)
            }
            _ => "<object>".into(),
        })
    }

    /// Returns a dict of `entries`.
    pub(super) fn dict_of(&mut self, entries: impl Iterator<Item = (Value, Value)>) -> Result<Value, Failure> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(key, value, self.meter)?;
        }
        Ok(Value::Dict(Arc::new(dict)))
    }

    // ---- attributes and items --------------------------------------------------------------------------------------

    /// Returns `value.name`: the attribute if there is one, otherwise the item.
    pub(super) fn attribute(&mut self, value: &Value, name: &str) -> Result<Value, Failure> {
        value.check_defined()?;
        if let Some(found) = self.own_attribute(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.get(&Value::from(name), self.meter)?
        {
            return Ok(found.clone());
        }
        Ok(Value::undefined(format!("'{}' has no attribute '{name}'", described(value))))
    }

    /// Returns `value[index]`: the item if there is one, otherwise the attribute.
    pub(super) fn item(&mut self, value: &Value, index: &Value) -> Result<Value, Failure> {
        value.check_defined()?;
        let found = match (value, index) {
            (Value::Dict(dict), Value::Seq(seq)) if !matches!(seq.kind, SeqKind::Tuple | SeqKind::Group) => {
                let _ = dict; // lists cannot be keys
                None
            }
            (Value::Dict(_), Value::Dict(_)) => None,
            (Value::Dict(dict), _) => dict.get(index, self.meter)?.cloned(),
            _ => match index.as_int() {
                Some(at) => operators::at_index(value, at, self.meter)?,
                None => None,
            },
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Value::Str(name) = index {
            if let Some(found) = self.own_attribute(value, name)? {
                return Ok(found);
            }
            return Ok(Value::undefined(format!("'{}' has no attribute '{}'", described(value), shortened(name))));
        }
        Ok(Value::undefined(format!("'{}' has no such element", described(value))))
    }

    fn own_attribute(&mut self, value: &Value, name: &str) -> Result<Option<Value>, Failure> {
        if let Value::Object(id) = value {
            return Ok(match self.objects.get(*id) {
                Some(Object::Namespace(attributes)) => attributes.get(name).cloned(),
                Some(Object::Loop(_)) => self.loop_attribute(*id, name)?,
                Some(Object::Macro(of, _)) => match name {
                    "name" => Some(Value::Str(of.name.clone())),
                    _ => None,
                },
                Some(Object::Cycler(items, at)) if name == "current" => items.get(*at).cloned(),
                Some(Object::Cycler(..)) if matches!(name, "next" | "reset") => {
                    Some(Value::Method(Arc::new((value.clone(), name.into()))))
                }
                _ => None,
            });
        }
        if let (Value::Seq(seq), "grouper" | "list") = (value, name)
            && seq.kind == SeqKind::Group
        {
            return Ok(seq.items.get(usize::from(name == "list")).cloned());
        }
        if methods::changes(value, name) {
            return Err(Failure::new(format!(
                "access to attribute '{name}' of '{}' object is unsafe",
                value.type_name()
            )));
        }
        let known = methods::exists(value, name);
        Ok(known.then(|| Value::Method(Arc::new((value.clone(), name.into())))))
    }

    // ---- calls -----------------------------------------------------------------------------------------------------

    /// Evaluates the arguments of a call.
    pub(super) fn arguments(&mut self, args: &'t Args, scope: usize) -> Result<Arguments, Failure> {
        let mut arguments = Arguments { positional: self.values(&args.positional, scope)?, named: Vec::new() };
        for (name, value) in &args.named {
            arguments.named.push((name.clone(), self.value(value, scope)?));
        }
        if let Some(star) = &args.star {
            let more = self.value(star, scope)?;
            let more = self.items_of(&more)?;
            arguments.positional.extend(more);
        }
        if let Some(star) = &args.double_star {
            let more = self.value(star, scope)?;
            let Value::Dict(dict) = &more else { return Err(Failure::new("argument after ** must be a mapping")) };
            self.meter.charge_for(dict.len(), 2 * ITEM)?;
            for (name, value) in dict.iter() {
                let Value::Str(name) = name else { return Err(Failure::new("keywords must be strings")) };
                arguments.named.push((name.clone(), value.clone()));
            }
        }
        Ok(arguments)
    }

    fn call_with(&mut self, function: &'t Expr, args: &'t Args, scope: usize) -> Result<Value, Failure> {
        // Python evaluates the function before its arguments.
        if let Kind::Attr(of, name) = &*function.kind {
            let receiver = self.value(of, scope)?;
            if methods::exists(&receiver, name) {
                let arguments = self.arguments(args, scope)?;
                return self.method(&receiver, name, &arguments);
            }
            let function = self.attribute(&receiver, name)?;
            let arguments = self.arguments(args, scope)?;
            return self.call(&function, arguments);
        }
        let function = self.value(function, scope)?;
        let arguments = self.arguments(args, scope)?;
        self.call(&function, arguments)
    }

    /// Evaluates a call expression.
    pub(super) fn call_expression(
        &mut self,
        function: &'t Expr,
        arguments: Arguments,
        scope: usize,
    ) -> Result<Value, Failure> {
        let function = self.value(function, scope)?;
        self.call(&function, arguments)
    }

    /// Calls a value with evaluated arguments.
    pub(super) fn call(&mut self, function: &Value, arguments: Arguments) -> Result<Value, Failure> {
        function.check_defined()?;
        match function {
            Value::Function(name) => self.function(name, &arguments),
            Value::Method(method) => self.method(&method.0, &method.1, &arguments),
            Value::Object(id) => match self.objects.get_mut(*id) {
                Some(Object::Macro(of, scope)) => {
                    let (of, scope) = (*of, *scope);
                    self.call_macro(of, scope, arguments)
                }
                Some(Object::Loop(_)) => {
                    let [over] = arguments.bind("loop", ["iterable"], 1)?;
                    self.recurse(*id, &over.unwrap_or(Value::None))
                }
                Some(Object::Joiner(separator, called)) => {
                    Ok(if std::mem::replace(called, true) { separator.clone() } else { "".into() })
                }
                _ => Err(Failure::new("the object is not callable")),
            },
            _ => Err(Failure::new(format!("'{}' object is not callable", function.type_name()))),
        }
    }

    fn method(&mut self, receiver: &Value, name: &str, arguments: &Arguments) -> Result<Value, Failure> {
        let meter = self.meter;
        match receiver {
            Value::Object(id) => self.object_method(*id, name, arguments),
            Value::Str(text) if matches!(name, "format" | "format_map") => {
                let by_name;
                let arguments = match (name, arguments.positional.first()) {
                    ("format_map", Some(Value::Dict(dict))) => {
                        meter.charge_for(dict.len(), ITEM)?;
                        let named = dict.iter().filter_map(|(key, value)| match key {
                            Value::Str(key) => Some((key.clone(), value.clone())),
                            _ => None,
                        });
                        by_name = Arguments { positional: Vec::new(), named: named.collect() };
                        &by_name
                    }
                    _ => arguments,
                };
                let mut lookup = |value: &Value, key: &Value, bracketed: bool| match key {
                    Value::Str(name) if !bracketed => self.attribute(value, name),
                    _ => self.item(value, key),
                };
                super::format::braces(text, arguments, &mut lookup, meter).map(Value::from)
            }
            Value::Str(text) if name == "join" => {
                let [items] = arguments.bind("join", ["iterable"], 1)?;
                let items = self.items_of(&items.unwrap_or(Value::None))?;
                let mut out = Writer::new(meter);
                for (i, item) in items.iter().enumerate() {
                    let item = item.as_str().ok_or_else(|| {
                        Failure::new(format!("sequence item {i}: expected str instance, {} found", item.type_name()))
                    })?;
                    out.push(if i > 0 { text } else { "" })?;
                    out.push(item)?;
                }
                Ok(out.finish().into())
            }
            _ => methods::call(receiver, name, arguments, meter),
        }
    }

    fn object_method(&mut self, id: usize, name: &str, arguments: &Arguments) -> Result<Value, Failure> {
        match (self.objects.get_mut(id), name) {
            (Some(Object::Loop(state)), "cycle") => {
                let values = &arguments.positional;
                if values.is_empty() {
                    return Err(Failure::new("no items for cycling given"));
                }
                Ok(values[state.index % values.len()].clone())
            }
            (Some(Object::Loop(state)), "changed") => {
                let before = state.changed.replace(arguments.positional.clone());
                let Some(before) = before else { return Ok(Value::Bool(true)) };
                let mut same = before.len() == arguments.positional.len();
                for (a, b) in before.iter().zip(&arguments.positional) {
                    same = same && operators::equal(a, b, self.meter)?;
                }
                Ok(Value::Bool(!same))
            }
            (Some(Object::Cycler(items, at)), "next") => {
                let now = items[*at].clone();
                *at = (*at + 1) % items.len();
                Ok(now)
            }
            (Some(Object::Cycler(_, at)), "reset") => {
                *at = 0;
                Ok(Value::None)
            }
            _ => Err(Failure::new(format!("unknown method '{name}'"))),
        }
    }

    /// Whether `a` sorts before `b`.
    pub(super) fn is_less(&self, a: &Value, b: &Value) -> Result<bool, Failure> {
        Ok(operators::order(a, b, self.meter)? == Some(Ordering::Less))
    }
}

/// Returns the description of a value that Jinja2 uses in its messages.
fn described(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        _ => format!("{} object", value.type_name()),
    }
}

/// Returns the start of a text, short enough for a message.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(100).map_or(text, |(at, _)| &text[..at])
}
