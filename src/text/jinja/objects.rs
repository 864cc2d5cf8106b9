//! What changes while a template runs, or leads to other values: the interpreter holds it, and values name its place.

use std::{collections::VecDeque, sync::Arc};

use indexmap::IndexMap;

use super::{
    syntax::{For, Macro},
    value::{Seq, Value},
};

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
    pub(super) of: &'t For,
    pub(super) scope: usize,
    pub(super) items: Source,
    /// Looked at already.
    pub(super) ahead: VecDeque<Value>,
    /// Where it is, from 0.
    pub(super) index: usize,
    /// Loops of the same kind around it.
    pub(super) outer: usize,
    pub(super) previous: Option<Value>,
    pub(super) current: Option<Value>,
    pub(super) changed: Option<Vec<Value>>,
}

/// What a loop goes through.
pub(super) enum Source {
    Seq(Arc<Seq>, usize),
    Generator(usize),
}
