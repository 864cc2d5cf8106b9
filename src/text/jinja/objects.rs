//! Objects: values that change while a template runs or that refer to other values. The interpreter stores them, and
//! values refer to them by index.

use std::{collections::VecDeque, sync::Arc};

use indexmap::IndexMap;

use super::{
    syntax::{For, Macro},
    value::{Seq, Value},
};

/// A mutable object, or one that refers to other values.
pub enum Object<'t> {
    /// `namespace()`
    Namespace(IndexMap<Arc<str>, Value>),
    /// `loop`
    Loop(Box<Loop<'t>>),
    /// A macro and the scope in which it was defined.
    Macro(&'t Macro, usize),
    /// An iterator that can be consumed once.
    Generator(VecDeque<Value>),
    /// `cycler()`
    Cycler(Vec<Value>, usize),
    /// `joiner()`, and whether it was called before.
    Joiner(Value, bool),
}

/// A loop in progress.
pub struct Loop<'t> {
    pub(super) of: &'t For,
    pub(super) scope: usize,
    pub(super) items: Source,
    /// Items fetched ahead.
    pub(super) ahead: VecDeque<Value>,
    /// Index of the current item, from 0.
    pub(super) index: usize,
    /// Depth of a recursive loop.
    pub(super) outer: usize,
    pub(super) previous: Option<Value>,
    pub(super) current: Option<Value>,
    pub(super) changed: Option<Vec<Value>>,
}

/// What a loop iterates over.
pub(super) enum Source {
    Seq(Arc<Seq>, usize),
    Generator(usize),
}
