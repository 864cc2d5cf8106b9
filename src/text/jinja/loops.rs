//! `for` loops and the attributes of `loop`.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Failure,
    interpreter::{Flow, Interpreter},
    meter::{ITEM, STEP},
    objects::{Loop, Object, Source},
    syntax::For,
    value::{Seq, Value},
};

impl<'t> Interpreter<'t> {
    pub(super) fn for_loop(&mut self, of: &'t For, over: &Value, scope: usize, outer: usize) -> Result<(), Failure> {
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
            // With an `else` branch, Jinja2 does not count an item that ended with `break` or `continue`.
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

    /// Advances a loop and returns its next item.
    pub(super) fn next_item(&mut self, id: usize) -> Result<Option<Value>, Failure> {
        if let Some(Object::Loop(state)) = self.objects.get_mut(id)
            && let Some(item) = state.ahead.pop_front()
        {
            return Ok(Some(item));
        }
        self.fetch_one_more(id)
    }

    /// Fetches one more item beyond those fetched ahead.
    fn fetch_one_more(&mut self, id: usize) -> Result<Option<Value>, Failure> {
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

    /// Returns the item after the current one without advancing.
    fn peek_item(&mut self, id: usize) -> Result<Option<Value>, Failure> {
        if let Some(Object::Loop(state)) = self.objects.get(id)
            && let Some(item) = state.ahead.front()
        {
            return Ok(Some(item.clone()));
        }
        let item = self.fetch_one_more(id)?;
        if let (Some(Object::Loop(state)), Some(item)) = (self.objects.get_mut(id), &item) {
            state.ahead.push_back(item.clone());
        }
        Ok(item)
    }

    /// Returns the number of items of a loop.
    fn loop_length(&mut self, id: usize) -> Result<usize, Failure> {
        let known = match self.objects.get(id) {
            Some(Object::Loop(state)) => match &state.items {
                Source::Seq(seq, at) if state.of.test.is_none() => Some(seq.items.len().saturating_sub(*at)),
                _ => None,
            },
            _ => None,
        };
        if known.is_none() {
            while let Some(item) = self.fetch_one_more(id)? {
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

    /// Returns an attribute of `loop`.
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

    /// Runs a recursive loop for other items.
    pub(super) fn recurse(&mut self, id: usize, over: &Value) -> Result<Value, Failure> {
        let Some(Object::Loop(state)) = self.objects.get(id) else { return Ok(Value::None) };
        let (of, scope, outer) = (state.of, state.scope, state.outer);
        if !of.recursive {
            return Err(Failure::new("loop(...) requires a loop marked `recursive`"));
        }
        self.called(|this| this.for_loop(of, over, scope, outer + 1).map(|()| Flow::Next))
    }
}
