//! Statements, done.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use indexmap::IndexMap;

use super::{
    Failure,
    arguments::Arguments,
    meter::{ITEM, Meter, STEP, Writer},
    python,
    syntax::{Action, Expr, For, Kind, Macro, Statement, Target},
    value::{Seq, Value},
};
use crate::limits;

/// Does what a template says.
///
/// Scopes and objects are held in lists and named by their places: values can't hold each other in a circle, and nothing
/// is dropped one inside the other.
pub struct Interpreter<'t> {
    pub(super) meter: &'t Meter,
    pub(super) objects: Vec<Object<'t>>,
    scopes: Vec<Scope<'t>>,
    /// Scopes below this are seen by a macro, and stay.
    pinned: usize,
    out: Writer<'t>,
    /// What the filters of a block are applied to.
    pub(super) captured: Vec<Value>,
    line: usize,
    depth: usize,
    /// How deep statements and expressions may be in each other, calls included.
    most: usize,
    calls: usize,
}

struct Scope<'t> {
    parent: Option<usize>,
    variables: HashMap<&'t str, Value>,
}

/// What is held by the interpreter: it changes, or leads to other values.
pub enum Object<'t> {
    /// `namespace()`
    Namespace(IndexMap<Arc<str>, Value>),
    /// `loop`
    Loop(Box<Loop<'t>>),
    /// A macro, and the scope that it was defined in.
    Macro(&'t Macro, usize),
    /// What can be gone through once.
    Generator(VecDeque<Value>),
    /// `cycler()`
    Cycler(Vec<Value>, usize),
    /// `joiner()`, and whether it was called.
    Joiner(Value, bool),
}

/// A loop that is going on.
pub struct Loop<'t> {
    of: &'t For,
    scope: usize,
    items: Source,
    /// Looked at already.
    ahead: VecDeque<Value>,
    /// Where it is, from 0.
    pub(super) index: usize,
    /// Loops of the same kind around it.
    pub(super) outer: usize,
    pub(super) previous: Option<Value>,
    pub(super) current: Option<Value>,
    pub(super) changed: Option<Vec<Value>>,
}

/// What a loop goes through.
enum Source {
    Seq(Arc<Seq>, usize),
    Generator(usize),
}

/// How a statement ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// The scope of what is set outside of loops and macros.
const ROOT: usize = 0;

impl<'t> Interpreter<'t> {
    /// Returns an interpreter that knows `variables`.
    pub fn new(variables: HashMap<&'t str, Value>, most: usize, meter: &'t Meter) -> Self {
        Self {
            meter,
            objects: Vec::new(),
            scopes: vec![Scope { parent: None, variables }, Scope { parent: Some(ROOT), variables: HashMap::new() }],
            pinned: 2,
            out: Writer::new(meter),
            captured: Vec::new(),
            line: 1,
            depth: 0,
            most,
            calls: 0,
        }
    }

    /// Does a whole template, and returns what it writes.
    pub fn run(mut self, template: &'t [Statement]) -> Result<String, Failure> {
        match self.body(template, ROOT) {
            Ok(Flow::Next) => Ok(self.out.finish()),
            Ok(_) => Err(Failure::new("`break` or `continue` stands outside of a loop")),
            Err(e) => Err(e.at(self.line)),
        }
    }

    /// Does `inner` one level further in.
    pub(super) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.depth == self.most {
            return Err(Failure::new(format!("calls and expressions are nested more than {} deep", self.most)));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Returns a scope inside of `parent`.
    fn enter(&mut self, parent: usize) -> Result<usize, Failure> {
        self.meter.charge(2 * ITEM)?;
        self.scopes.push(Scope { parent: Some(parent), variables: HashMap::new() });
        Ok(self.scopes.len() - 1)
    }

    /// Forgets a scope, unless a macro sees it.
    fn leave(&mut self, scope: usize) {
        if scope >= self.pinned {
            self.scopes.truncate(scope);
        }
    }

    /// Holds an object, and returns its value.
    pub(super) fn hold(&mut self, object: Object<'t>) -> Result<Value, Failure> {
        self.meter.charge(4 * ITEM)?;
        self.objects.push(object);
        Ok(Value::Object(self.objects.len() - 1))
    }

    /// Returns the value of a variable.
    pub(super) fn variable(&self, name: &str, scope: usize) -> Result<Option<Value>, Failure> {
        let mut at = Some(scope);
        while let Some(scope) = at {
            self.meter.charge(STEP / 4)?;
            if let Some(value) = self.scopes[scope].variables.get(name) {
                return Ok(Some(value.clone()));
            }
            at = self.scopes[scope].parent;
        }
        Ok(None)
    }

    fn set(&mut self, name: &'t str, value: Value, scope: usize) -> Result<(), Failure> {
        self.meter.charge(ITEM)?;
        self.scopes[scope].variables.insert(name, value);
        Ok(())
    }

    fn assign(&mut self, target: &'t Target, value: Value, scope: usize) -> Result<(), Failure> {
        match target {
            Target::Name(name) => self.set(name, value, scope),
            Target::Attr(name, attribute) => {
                let holder = self.variable(name, scope)?;
                if attribute.starts_with('_') {
                    return Err(Failure::new("attributes of a namespace cannot begin with an underscore"));
                }
                self.meter.charge(2 * ITEM)?;
                match holder.map(|holder| self.object(&holder)) {
                    Some(Some(Object::Namespace(attributes))) => {
                        attributes.insert(attribute.clone(), value);
                        Ok(())
                    }
                    _ => Err(Failure::new("cannot assign attribute on non-namespace object")),
                }
            }
            Target::Tuple(targets) => {
                let values = self.items_of(&value)?;
                if values.len() != targets.len() {
                    let (wanted, found) = (targets.len(), values.len());
                    return Err(Failure::new(format!("{wanted} values are assigned to, but there are {found}")));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value, scope))
            }
        }
    }

    /// Returns the object that a value names.
    pub(super) fn object(&mut self, value: &Value) -> Option<&mut Object<'t>> {
        match value {
            Value::Object(id) => self.objects.get_mut(*id),
            _ => None,
        }
    }

    /// Returns what a value holds if one goes through it; what can be gone through once is used up.
    pub(super) fn items_of(&mut self, value: &Value) -> Result<Vec<Value>, Failure> {
        let meter = self.meter;
        match value {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Seq(seq) => {
                meter.charge_for(seq.items.len(), ITEM)?;
                Ok(seq.items.clone())
            }
            Value::Dict(dict) => {
                meter.charge_for(dict.len(), ITEM)?;
                Ok(dict.iter().map(|(key, _)| key.clone()).collect())
            }
            Value::Str(text) => {
                meter.charge_for(text.len(), ITEM)?;
                Ok(text.chars().map(|c| Value::from(c.to_string())).collect())
            }
            _ => match self.object(value) {
                Some(Object::Generator(items)) => Ok(std::mem::take(items).into()),
                Some(Object::Loop(_)) => {
                    let Value::Object(id) = *value else { return Ok(Vec::new()) };
                    let mut items = Vec::new();
                    while let Some(item) = self.next_item(id)? {
                        items.push(item);
                    }
                    Ok(items)
                }
                _ => Err(Failure::new(format!("'{}' object is not iterable", value.type_name()))),
            },
        }
    }

    /// Does `write`, and returns what it writes.
    pub(super) fn capture<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<(String, T), Failure> {
        let around = std::mem::replace(&mut self.out, Writer::new(self.meter));
        let result = write(self);
        let text = std::mem::replace(&mut self.out, around).finish();
        Ok((text, result?))
    }

    fn body(&mut self, body: &'t [Statement], scope: usize) -> Result<Flow, Failure> {
        for statement in body {
            self.line = statement.line;
            let flow = self.deeper(|this| this.statement(&statement.action, scope))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Does `body` in a scope of its own.
    fn inner_body(&mut self, body: &'t [Statement], parent: usize) -> Result<Flow, Failure> {
        let scope = self.enter(parent)?;
        let flow = self.body(body, scope)?;
        self.leave(scope);
        Ok(flow)
    }

    fn statement(&mut self, action: &'t Action, scope: usize) -> Result<Flow, Failure> {
        self.meter.charge(STEP)?;
        match action {
            Action::Text(text) => self.out.push(text)?,
            Action::Print(value) => {
                let value = self.value(value, scope)?;
                self.print(&value)?;
            }
            Action::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.value(condition, scope)?.is_true() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            Action::For(of) => {
                let over = self.value(&of.over, scope)?;
                self.for_loop(of, &over, scope, 0)?;
            }
            Action::Set(target, value) => {
                let value = self.value(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Action::SetBlock(target, filters, body) => {
                let value = self.filtered(filters, body, scope)?;
                self.assign(target, value, scope)?;
            }
            Action::FilterBlock(filters, body) => {
                let value = self.filtered(filters, body, scope)?;
                self.print(&value)?;
            }
            Action::With(values, body) => {
                let inner = self.enter(scope)?;
                for (target, value) in values {
                    let value = self.value(value, scope)?;
                    self.assign(target, value, inner)?;
                }
                let flow = self.body(body, inner)?;
                self.leave(inner);
                return Ok(flow);
            }
            Action::Macro(of) => {
                let value = self.define(of, scope)?;
                self.set(&of.name, value, scope)?;
            }
            Action::CallBlock(of, call) => {
                let Kind::Call(function, arguments) = &*call.kind else { return Ok(Flow::Next) };
                let mut arguments = self.arguments(arguments, scope)?;
                arguments.named.push((of.name.clone(), self.define(of, scope)?));
                let value = self.call_expression(function, arguments, scope)?;
                self.print(&value)?;
            }
            Action::Scope(body) => return self.inner_body(body, scope),
            Action::Block(body) => return self.inner_body(body, ROOT),
            Action::Hide(names) => {
                for name in names {
                    self.set(name, Value::undefined(format!("'{name}' is undefined")), scope)?;
                }
            }
            Action::Break => return Ok(Flow::Break),
            Action::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn print(&mut self, value: &Value) -> Result<(), Failure> {
        if let Value::Object(_) = value {
            let text = self.text_of(value)?;
            return self.out.push(&text);
        }
        python::write(value, &mut self.out)
    }

    fn filtered(&mut self, filters: &'t Expr, body: &'t [Statement], scope: usize) -> Result<Value, Failure> {
        let (text, _) = self.capture(|this| this.inner_body(body, scope))?;
        self.captured.push(text.into());
        let value = self.value(filters, scope)?;
        self.captured.pop();
        Ok(value)
    }

    // ---- macros --------------------------------------------------------------------------------------------------

    fn define(&mut self, of: &'t Macro, scope: usize) -> Result<Value, Failure> {
        self.pinned = self.scopes.len();
        self.hold(Object::Macro(of, scope))
    }

    /// Calls the macro `of`, which was defined in `scope`.
    pub(super) fn call_macro(&mut self, of: &'t Macro, scope: usize, arguments: Arguments) -> Result<Value, Failure> {
        let (given, known) = (arguments.positional.len(), of.parameters.len());
        self.meter.charge_for(known + 1, arguments.named.len() + 1)?;
        if given > known && !of.uses.varargs {
            return Err(Failure::new(format!("macro '{}' takes not more than {known} argument(s)", of.name)));
        }
        let inner = self.enter(scope)?;
        let mut named = IndexMap::new();
        named.extend(arguments.named);
        let mut positional = arguments.positional.into_iter();
        for (i, (name, default)) in of.parameters.iter().enumerate() {
            let by_name = named.shift_remove(name);
            let value = match positional.next() {
                Some(_) if by_name.is_some() => {
                    return Err(Failure::new(format!("macro '{}' got argument '{name}' twice", of.name)));
                }
                Some(value) => value,
                None => match (by_name, default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => self.value(default, inner)?,
                    (None, None) => Value::undefined(format!("parameter '{name}' was not provided ({i})")),
                },
            };
            self.set(name, value, inner)?;
        }
        let rest: Vec<_> = positional.collect();
        let caller = named.shift_remove("caller");
        if of.uses.caller {
            let none = || Value::undefined("No caller defined");
            self.set("caller", caller.unwrap_or_else(none), inner)?;
        } else if caller.is_some() {
            return Err(Failure::new(format!(
                "macro '{}' was invoked with two values for the special caller argument, or uses none",
                of.name
            )));
        }
        if of.uses.varargs {
            let rest = Seq::of(super::value::SeqKind::Tuple, rest, self.meter)?;
            self.set("varargs", rest, inner)?;
        }
        if of.uses.kwargs {
            let rest = self.dict_of(named.into_iter().map(|(name, value)| (Value::Str(name), value)))?;
            self.set("kwargs", rest, inner)?;
        } else if let Some(name) = named.keys().next() {
            return Err(Failure::new(format!("macro '{}' takes no keyword argument '{name}'", of.name)));
        }
        let line = self.line;
        let text = self.called(|this| this.body(&of.body, inner))?;
        self.line = line;
        self.leave(inner);
        Ok(text)
    }

    /// Does what is called, and returns what it writes.
    fn called(&mut self, body: impl FnOnce(&mut Self) -> Result<Flow, Failure>) -> Result<Value, Failure> {
        if self.calls == limits::TEMPLATE_DEPTH {
            return Err(Failure::new(format!("calls are nested more than {} deep", limits::TEMPLATE_DEPTH)));
        }
        self.calls += 1;
        let (text, _) = self.capture(body)?;
        self.calls -= 1;
        Ok(text.into())
    }

    // ---- loops ---------------------------------------------------------------------------------------------------

    fn for_loop(&mut self, of: &'t For, over: &Value, scope: usize, outer: usize) -> Result<(), Failure> {
        let items = match over {
            Value::Seq(seq) => Source::Seq(seq.clone(), 0),
            Value::Object(id) if matches!(self.objects.get(*id), Some(Object::Generator(_))) => Source::Generator(*id),
            _ => {
                let items = self.items_of(over)?;
                match Seq::list(items, self.meter)? {
                    Value::Seq(seq) => Source::Seq(seq, 0),
                    _ => return Ok(()),
                }
            }
        };
        let state = Loop {
            of,
            scope,
            items,
            ahead: VecDeque::new(),
            index: 0,
            outer,
            previous: None,
            current: None,
            changed: None,
        };
        let handle = self.hold(Object::Loop(Box::new(state)))?;
        let Value::Object(id) = handle else { return Ok(()) };
        let (mut started, mut completed) = (false, false);
        while let Some(item) = self.next_item(id)? {
            self.meter.charge(STEP)?;
            let inner = self.enter(scope)?;
            if let Some(Object::Loop(state)) = self.objects.get_mut(id) {
                state.index += usize::from(started);
                state.previous = state.current.replace(item.clone());
            }
            started = true;
            self.set("loop", handle.clone(), inner)?;
            self.assign(&of.target, item, inner)?;
            let flow = self.body(&of.body, inner)?;
            self.leave(inner);
            // Jinja2 takes an item that `break` or `continue` left for none, where there is an `else`.
            completed |= flow == Flow::Next;
            if flow == Flow::Break {
                break;
            }
        }
        if !completed {
            self.inner_body(&of.otherwise, scope)?;
        }
        Ok(())
    }

    /// Returns the next item of a loop.
    fn next_item(&mut self, id: usize) -> Result<Option<Value>, Failure> {
        if let Some(Object::Loop(state)) = self.objects.get_mut(id)
            && let Some(item) = state.ahead.pop_front()
        {
            return Ok(Some(item));
        }
        self.look_further(id)
    }

    /// Returns the item of a loop that comes next after those that were looked at.
    fn look_further(&mut self, id: usize) -> Result<Option<Value>, Failure> {
        loop {
            self.meter.charge(STEP / 4)?;
            let Some(Object::Loop(state)) = self.objects.get_mut(id) else { return Ok(None) };
            let (of, scope) = (state.of, state.scope);
            let item = match &mut state.items {
                Source::Seq(seq, at) => {
                    *at += 1;
                    seq.items.get(*at - 1).cloned()
                }
                Source::Generator(generator) => {
                    let generator = *generator;
                    match self.objects.get_mut(generator) {
                        Some(Object::Generator(items)) => items.pop_front(),
                        _ => None,
                    }
                }
            };
            let Some(item) = item else { return Ok(None) };
            let Some(test) = &of.test else { return Ok(Some(item)) };
            let inner = self.enter(scope)?;
            self.assign(&of.target, item.clone(), inner)?;
            let counts = self.value(test, inner)?.is_true();
            self.leave(inner);
            if counts {
                return Ok(Some(item));
            }
        }
    }

    /// Returns the item after the present one, which stays the next one.
    fn peek_item(&mut self, id: usize) -> Result<Option<Value>, Failure> {
        if let Some(Object::Loop(state)) = self.objects.get(id)
            && let Some(item) = state.ahead.front()
        {
            return Ok(Some(item.clone()));
        }
        let item = self.look_further(id)?;
        if let (Some(Object::Loop(state)), Some(item)) = (self.objects.get_mut(id), &item) {
            state.ahead.push_back(item.clone());
        }
        Ok(item)
    }

    /// Returns the number of a loop's items.
    fn loop_length(&mut self, id: usize) -> Result<usize, Failure> {
        let known = match self.objects.get(id) {
            Some(Object::Loop(state)) => match &state.items {
                Source::Seq(seq, at) if state.of.test.is_none() => Some(seq.items.len().saturating_sub(*at)),
                _ => None,
            },
            _ => None,
        };
        if known.is_none() {
            while let Some(item) = self.look_further(id)? {
                self.meter.charge(ITEM)?;
                if let Some(Object::Loop(state)) = self.objects.get_mut(id) {
                    state.ahead.push_back(item);
                }
            }
        }
        let rest = known.unwrap_or_default();
        match self.objects.get(id) {
            Some(Object::Loop(state)) => Ok(state.index + 1 + state.ahead.len() + rest),
            _ => Ok(0),
        }
    }

    /// Returns what `loop` says under a name.
    pub(super) fn loop_attribute(&mut self, id: usize, name: &str) -> Result<Option<Value>, Failure> {
        let Some(Object::Loop(state)) = self.objects.get(id) else { return Ok(None) };
        let (index, outer) = (state.index, state.outer);
        Ok(Some(match name {
            "index" => (index + 1).into(),
            "index0" => index.into(),
            "first" => Value::Bool(index == 0),
            "depth" => (outer + 1).into(),
            "depth0" => outer.into(),
            "previtem" => state.previous.clone().unwrap_or_else(|| Value::undefined("there is no previous item")),
            "last" => Value::Bool(self.peek_item(id)?.is_none()),
            "nextitem" => self.peek_item(id)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            "length" => self.loop_length(id)?.into(),
            "revindex" => (self.loop_length(id)? - index).into(),
            "revindex0" => (self.loop_length(id)? - index - 1).into(),
            "cycle" | "changed" => Value::Method(Arc::new((Value::Object(id), name.into()))),
            _ => return Ok(None),
        }))
    }

    /// Does a loop again, for other items.
    pub(super) fn recurse(&mut self, id: usize, over: &Value) -> Result<Value, Failure> {
        let Some(Object::Loop(state)) = self.objects.get(id) else { return Ok(Value::None) };
        let (of, scope, outer) = (state.of, state.scope, state.outer);
        if !of.recursive {
            return Err(Failure::new("the loop is not recursive: it is not marked as `recursive`"));
        }
        self.called(|this| this.for_loop(of, over, scope, outer + 1).map(|()| Flow::Next))
    }
}
