//! Resolves the scope of variables before a template runs.
//!
//! Jinja2 compiles blocks to Python functions with local variables. A block that assigns a variable without reading it
//! first shadows the outer variable of that name from the start of the block. This pass finds such names and inserts a
//! statement at the start of the block that hides them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Failure,
    syntax::{Action, Args, Expr, Kind, Statement, Target},
};

/// The state of a name at the start of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Refers to the outer variable.
    Outer,
    /// Is undefined.
    Hidden,
}

/// The names of a block.
#[derive(Default)]
struct Frame {
    names: HashMap<Arc<str>, Start>,
    stores: HashSet<Arc<str>>,
    /// Names added since a branch was entered, to be removed when it ends.
    added: HashMap<Arc<str>, Start>,
    stored: HashSet<Arc<str>>,
}

/// Inserts the statements that hide names.
pub fn hide(template: &mut Vec<Statement>) -> Result<(), Failure> {
    let mut frames = Frames { around: Vec::new(), names: 0 };
    frames.block(template, Vec::new());
    if frames.names > NAMES { Err(Failure::new("too many variables in too many blocks")) } else { Ok(()) }
}

/// Limit on name look-ups: each counts once for every enclosing branch.
const NAMES: usize = 500_000;

struct Frames {
    /// The enclosing blocks, outermost first.
    around: Vec<Frame>,
    /// Number of name look-ups so far.
    names: usize,
}

impl Frames {
    /// Visits a block whose `parameters` are defined at its start.
    fn block(&mut self, body: &mut Vec<Statement>, parameters: Vec<Arc<str>>) {
        let names = parameters.into_iter().map(|name| (name, Start::Outer)).collect();
        self.around.push(Frame { names, ..Frame::default() });
        self.statements(body);
        self.inner_blocks(body);
        let frame = self.around.pop().unwrap_or_default();
        let mut hidden: Vec<_> =
            frame.names.into_iter().filter(|(_, start)| *start == Start::Hidden).map(|(name, _)| name).collect();
        if !hidden.is_empty() {
            hidden.sort_unstable();
            let line = body.first().map_or(1, |statement| statement.line);
            body.insert(0, Statement { action: Action::Hide(hidden), line });
        }
    }

    fn inner_blocks(&mut self, body: &mut [Statement]) {
        for statement in body {
            if self.names > NAMES {
                return;
            }
            match &mut statement.action {
                Action::For(of) => {
                    let mut names = vec!["loop".into()];
                    names_of(&of.target, &mut names);
                    self.block(&mut of.body, names);
                    self.block(&mut of.otherwise, Vec::new());
                }
                Action::If(branches, otherwise) => {
                    branches.iter_mut().for_each(|(_, body)| self.inner_blocks(body));
                    self.inner_blocks(otherwise);
                }
                Action::With(values, body) => {
                    let mut names = Vec::new();
                    values.iter().for_each(|(target, _)| names_of(target, &mut names));
                    self.block(body, names);
                }
                Action::Macro(of) | Action::CallBlock(of, _) => {
                    let own = ["caller", "varargs", "kwargs"].map(Arc::from);
                    let names = of.parameters.iter().map(|(name, _)| name.clone()).chain(own).collect();
                    self.block(&mut of.body, names);
                }
                Action::SetBlock(_, _, body) | Action::FilterBlock(_, body) | Action::Scope(body) => {
                    self.block(body, Vec::new());
                }
                Action::Block(body) => {
                    let around = std::mem::take(&mut self.around);
                    self.block(body, Vec::new());
                    self.around = around;
                }
                _ => {}
            }
        }
    }

    fn frame(&mut self) -> &mut Frame {
        let last = self.around.len() - 1;
        &mut self.around[last]
    }

    fn is_known(&self, name: &str) -> bool {
        self.around.iter().any(|frame| frame.names.contains_key(name))
    }

    fn is_known_outside(&self, name: &str) -> bool {
        self.around[..self.around.len() - 1].iter().any(|frame| frame.names.contains_key(name))
    }

    fn define(&mut self, name: &Arc<str>, start: Start) {
        self.names += 1;
        if self.names > NAMES {
            return;
        }
        let frame = self.frame();
        frame.names.insert(name.clone(), start);
        frame.added.insert(name.clone(), start);
    }

    fn load(&mut self, name: &Arc<str>) {
        if !self.is_known(name) {
            self.define(name, Start::Outer);
        }
    }

    fn store(&mut self, target: &Target) {
        let mut names = Vec::new();
        match target {
            Target::Attr(name, _) => self.load(name),
            _ => names_of(target, &mut names),
        }
        for name in names {
            self.store_name(&name);
        }
    }

    fn store_name(&mut self, name: &Arc<str>) {
        let outside = self.is_known_outside(name);
        let frame = self.frame();
        if frame.stores.insert(name.clone()) {
            frame.stored.insert(name.clone());
        }
        if !frame.names.contains_key(name) {
            self.define(name, if outside { Start::Outer } else { Start::Hidden });
        }
    }

    fn statements(&mut self, body: &[Statement]) {
        for statement in body {
            if self.names > NAMES {
                return;
            }
            match &statement.action {
                Action::Print(value) | Action::CallBlock(_, value) | Action::FilterBlock(value, _) => {
                    self.expression(value)
                }
                Action::For(of) => self.expression(&of.over),
                Action::Set(target, value) => {
                    self.expression(value);
                    self.store(target);
                }
                Action::SetBlock(target, ..) => self.store(target),
                Action::With(values, _) => values.iter().for_each(|(_, value)| self.expression(value)),
                Action::Macro(of) => self.store_name(&of.name),
                Action::If(branches, otherwise) => self.branches(branches, otherwise),
                Action::Text(_) | Action::Scope(_) | Action::Block(_) | Action::Break | Action::Continue => {}
                Action::Hide(_) => {}
            }
        }
    }

    /// Visits the branches of an `if`: a name that only some of them assign is not hidden.
    fn branches(&mut self, branches: &[(Expr, Vec<Statement>)], otherwise: &[Statement]) {
        let Some(((test, first), others)) = branches.split_first() else { return };
        self.expression(test);
        let changes = [
            self.branch(|frames| frames.statements(first)),
            self.branch(|frames| others.iter().for_each(|one| frames.branches(std::slice::from_ref(one), &[]))),
            self.branch(|frames| frames.statements(otherwise)),
        ];
        if self.names > NAMES {
            return;
        }
        let mut counts: HashMap<Arc<str>, usize> = HashMap::new();
        for name in changes.iter().flat_map(|(_, stored)| stored) {
            *counts.entry(name.clone()).or_default() += 1;
        }
        for (added, stored) in changes {
            added.iter().for_each(|(name, start)| self.define(name, *start));
            let frame = self.frame();
            for name in stored {
                if frame.stores.insert(name.clone()) {
                    frame.stored.insert(name);
                }
            }
        }
        for name in counts.into_iter().filter(|(_, count)| *count < 3).map(|(name, _)| name) {
            self.define(&name, Start::Outer);
        }
    }

    /// Visits a branch and returns the names that it added, which are removed again.
    fn branch(&mut self, through: impl FnOnce(&mut Self)) -> (HashMap<Arc<str>, Start>, HashSet<Arc<str>>) {
        let frame = self.frame();
        let around = (std::mem::take(&mut frame.added), std::mem::take(&mut frame.stored));
        through(self);
        let frame = self.frame();
        let added = std::mem::replace(&mut frame.added, around.0);
        let stored = std::mem::replace(&mut frame.stored, around.1);
        for name in added.keys() {
            frame.names.remove(name);
        }
        for name in &stored {
            frame.stores.remove(name);
        }
        (added, stored)
    }

    fn expression(&mut self, expr: &Expr) {
        match &*expr.kind {
            Kind::Name(name) => self.load(name),
            Kind::Const(_) | Kind::Captured => {}
            Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => {
                items.iter().for_each(|item| self.expression(item));
            }
            Kind::Dict(pairs) => pairs.iter().for_each(|(key, value)| {
                self.expression(key);
                self.expression(value);
            }),
            Kind::Attr(of, _) | Kind::Not(of) | Kind::Minus(of) | Kind::Plus(of) => self.expression(of),
            Kind::Item(a, b) | Kind::Binary(a, _, b) | Kind::And(a, b) | Kind::Or(a, b) => {
                self.expression(a);
                self.expression(b);
            }
            Kind::Slice(of, bounds) => {
                self.expression(of);
                bounds.iter().flatten().for_each(|bound| self.expression(bound));
            }
            Kind::Call(of, args) | Kind::Filter(of, _, args) | Kind::Test(of, _, args) => {
                self.expression(of);
                self.args(args);
            }
            Kind::Compare(first, others) => {
                self.expression(first);
                others.iter().for_each(|(_, other)| self.expression(other));
            }
            Kind::If(test, value, otherwise) => {
                self.expression(test);
                self.expression(value);
                if let Some(otherwise) = otherwise {
                    self.expression(otherwise);
                }
            }
        }
    }

    fn args(&mut self, args: &Args) {
        let named = args.named.iter().map(|(_, value)| value);
        let all = args.positional.iter().chain(named).chain(&args.star).chain(&args.double_star);
        all.for_each(|value| self.expression(value));
    }
}

fn names_of(target: &Target, names: &mut Vec<Arc<str>>) {
    match target {
        Target::Name(name) => names.push(name.clone()),
        Target::Tuple(targets) => targets.iter().for_each(|target| names_of(target, names)),
        Target::Attr(..) => {}
    }
}
