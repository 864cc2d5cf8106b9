//! A Jinja engine for chat templates, compatible with `transformers`: Jinja2's immutable sandbox with loop controls,
//! `{% generation %}`, `tojson`, `raise_exception` and `strftime_now`.
//!
//! Chat templates are untrusted programs. Their cost is metered ([`meter`]), the nesting of source and values is
//! limited, and values cannot refer to themselves ([`interpreter`]), so no template can exhaust memory, stack or time.

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

/// Variables by name, as JSON values.
pub type Variables = serde_json::Map<String, serde_json::Value>;

/// A parsed template.
#[derive(Debug)]
pub struct Program(Vec<syntax::Statement>);

impl Program {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self, Failure> {
        on_own_stack(|_| parser::parse(source)).map(Self)
    }

    /// Renders the template; setting `cancel` ends the rendering.
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

/// Returns a budget for converting the variables, which the template does not pay for.
fn free() -> meter::Meter {
    meter::Meter::new(u64::MAX)
}

/// Stack size for [`limits::TEMPLATE_CALL_DEPTH`]: twice what unoptimized code needs.
const STACK: usize = 64 << 20;
/// Nesting depth that is allowed if no thread could be started and the caller's stack is used.
const SHALLOW: usize = 100;

/// Runs `work` on a stack that is large enough, passing the depth that is allowed there. A panic becomes a failure.
fn on_own_stack<T: Send>(work: impl Fn(usize) -> Result<T, Failure> + Sync) -> Result<T, Failure> {
    let guarded = |depth| {
        let panicked = |message| Err(Failure::new(format!("the template engine failed ({message})")));
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
