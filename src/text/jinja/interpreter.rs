//! Execution of statements: scopes, objects and control flow.

use std::collections::HashMap;

use super::{
    Failure,
    meter::{ITEM, Meter, STEP, Writer},
    objects::Object,
    python,
    syntax::{Action, Expr, Kind, Statement, Target},
    value::Value,
};

/// Runs a template.
///
/// Scopes and objects live in vectors and are referred to by index. Values therefore cannot form cycles, and dropping
/// them never recurses.
pub struct Interpreter<'t> {
    pub(super) meter: &'t Meter,
    pub(super) objects: Vec<Object<'t>>,
    pub(super) scopes: Vec<Scope<'t>>,
    /// Scopes below this index are captured by a macro and must be kept.
    pub(super) pinned: usize,
    out: Writer<'t>,
    /// The values that the filters of enclosing blocks apply to.
    pub(super) captured: Vec<Value>,
    pub(super) line: usize,
    depth: usize,
    /// Maximum nesting depth of statements and expressions, calls included.
    max_depth: usize,
    pub(super) calls: usize,
}

pub(super) struct Scope<'t> {
    parent: Option<usize>,
    variables: HashMap<&'t str, Value>,
}

/// How a statement completes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// The scope outside of all loops and macros.
const ROOT: usize = 0;

impl<'t> Interpreter<'t> {
    /// Returns an interpreter with the given global variables.
    pub fn new(variables: HashMap<&'t str, Value>, max_depth: usize, meter: &'t Meter) -> Self {
        Self {
            meter,
            objects: Vec::new(),
            scopes: vec![Scope { parent: None, variables }, Scope { parent: Some(ROOT), variables: HashMap::new() }],
            pinned: 2,
            out: Writer::new(meter),
            captured: Vec::new(),
            line: 1,
            depth: 0,
            max_depth,
            calls: 0,
        }
    }

    /// Runs a whole template and returns its output.
    pub fn run(mut self, template: &'t [Statement]) -> Result<String, Failure> {
        match self.body(template, ROOT) {
            Ok(Flow::Next) => Ok(self.out.finish()),
            Ok(_) => Err(Failure::new("`break` or `continue` outside of a loop")),
            Err(e) => Err(e.at(self.line)),
        }
    }

    /// Runs `inner` one nesting level deeper.
    pub(super) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.depth == self.max_depth {
            return Err(Failure::new(format!("calls and expressions are nested more than {} deep", self.max_depth)));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Enters a new scope inside `parent`.
    pub(super) fn enter(&mut self, parent: usize) -> Result<usize, Failure> {
        self.meter.charge(2 * ITEM)?;
        self.scopes.push(Scope { parent: Some(parent), variables: HashMap::new() });
        Ok(self.scopes.len() - 1)
    }

    /// Drops a scope, unless a macro captured it.
    pub(super) fn leave(&mut self, scope: usize) {
        if scope >= self.pinned {
            self.scopes.truncate(scope);
        }
    }

    /// Stores an object and returns a value that refers to it.
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

    pub(super) fn set(&mut self, name: &'t str, value: Value, scope: usize) -> Result<(), Failure> {
        self.meter.charge(ITEM)?;
        self.scopes[scope].variables.insert(name, value);
        Ok(())
    }

    pub(super) fn assign(&mut self, target: &'t Target, value: Value, scope: usize) -> Result<(), Failure> {
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
                    return Err(Failure::new(format!("expected {wanted} values to unpack, found {found}")));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value, scope))
            }
        }
    }

    /// Returns the object that a value refers to.
    pub(super) fn object(&mut self, value: &Value) -> Option<&mut Object<'t>> {
        match value {
            Value::Object(id) => self.objects.get_mut(*id),
            _ => None,
        }
    }

    /// Returns the items that iterating over a value yields. Generators are consumed.
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

    /// Runs `write` and returns its output.
    pub(super) fn capture<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<(String, T), Failure> {
        let around = std::mem::replace(&mut self.out, Writer::new(self.meter));
        let result = write(self);
        let text = std::mem::replace(&mut self.out, around).finish();
        Ok((text, result?))
    }

    pub(super) fn body(&mut self, body: &'t [Statement], scope: usize) -> Result<Flow, Failure> {
        for statement in body {
            self.line = statement.line;
            let flow = self.deeper(|this| this.statement(&statement.action, scope))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Runs `body` in a new scope.
    pub(super) fn inner_body(&mut self, body: &'t [Statement], parent: usize) -> Result<Flow, Failure> {
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
}
