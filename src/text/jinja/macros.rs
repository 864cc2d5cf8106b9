//! Macros and `call` blocks.

use indexmap::IndexMap;

use super::{
    Failure,
    arguments::Arguments,
    interpreter::{Flow, Interpreter},
    objects::Object,
    syntax::Macro,
    value::{Seq, SeqKind, Value},
};
use crate::limits;

impl<'t> Interpreter<'t> {
    pub(super) fn define(&mut self, of: &'t Macro, scope: usize) -> Result<Value, Failure> {
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
            let rest = Seq::of(SeqKind::Tuple, rest, self.meter)?;
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

    /// Runs the body of a call and returns its output.
    pub(super) fn called(&mut self, body: impl FnOnce(&mut Self) -> Result<Flow, Failure>) -> Result<Value, Failure> {
        if self.calls == limits::TEMPLATE_DEPTH {
            return Err(Failure::new(format!("calls are nested more than {} deep", limits::TEMPLATE_DEPTH)));
        }
        self.calls += 1;
        let (text, _) = self.capture(body)?;
        self.calls -= 1;
        Ok(text.into())
    }
}
