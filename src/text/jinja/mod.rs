//! Jinja as `transformers` has it, for chat templates: Jinja2's sandbox in which values do not change, with its loop
//! controls, `{% generation %}`, `tojson`, `raise_exception` and `strftime_now`.
//!
//! Chat templates are programs by strangers. What they may cost is counted where it arises ([`meter`]), values and source
//! are nowhere deep, and nothing refers to itself ([`interpreter`]): so no template can exhaust memory, stack or time.

mod arguments;
mod checks;
mod clock;
mod evaluate;
mod expressions;
mod failure;
mod filters;
mod format;
mod frames;
mod functions;
mod interpreter;
mod json;
mod lexer;
mod list_filters;
mod loops;
mod macros;
mod meter;
mod methods;
mod number_format;
mod objects;
mod operators;
mod parser;
mod python;
mod sorting;
mod syntax;
mod texts;
mod value;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

pub use failure::Failure;

use crate::{foreign, limits};

/// Values by name, as they come from JSON.
pub type Variables = serde_json::Map<String, serde_json::Value>;

/// A parsed template.
#[derive(Debug)]
pub struct Program(Vec<syntax::Statement>);

impl Program {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self, Failure> {
        on_own_stack(|_| parser::parse(source)).map(Self)
    }

    /// Returns what the template makes of `variables`; `cancel` ends that.
    pub fn render(&self, variables: &Variables, cancel: Option<&Arc<AtomicBool>>) -> Result<String, Failure> {
        on_own_stack(|depth| {
            let meter = meter::Meter::new(limits::TEMPLATE_STEPS).cancelled_by(cancel.cloned());
            let mut values = HashMap::new();
            for (name, value) in variables {
                values.insert(name.as_str(), value::Value::from_json(value, &free())?);
            }
            interpreter::Interpreter::new(values, depth, &meter).run(&self.0)
        })
    }
}

/// Returns a budget for what a template is given, which it does not pay for.
fn free() -> meter::Meter {
    meter::Meter::new(u64::MAX)
}

/// Bytes of stack for [`limits::TEMPLATE_CALL_DEPTH`]: twice what unoptimized code takes.
const STACK: usize = 64 << 20;
/// How deep calls and expressions may be where there is no thread to be had, and the stack is the caller's.
const SHALLOW: usize = 100;

/// Does `work` on a stack that is large enough for it, and tells it how deep it may go. A panic becomes a failure.
fn on_own_stack<T: Send>(work: impl Fn(usize) -> Result<T, Failure> + Sync) -> Result<T, Failure> {
    let guarded = |depth| {
        let panicked = |said| Err(Failure::new(format!("the template engine failed ({said})")));
        foreign::call(|| work(depth)).unwrap_or_else(panicked)
    };
    thread::scope(|scope| {
        let deep = || guarded(limits::TEMPLATE_CALL_DEPTH);
        match thread::Builder::new().stack_size(STACK).spawn_scoped(scope, deep) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(Failure::new("the template engine failed"))),
            Err(_) => guarded(SHALLOW),
        }
    })
}
