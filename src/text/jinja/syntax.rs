//! A parsed template.

use std::sync::Arc;

use super::value::Value;

/// An expression.
#[derive(Debug)]
pub struct Expr {
    /// What it is.
    pub kind: Box<Kind>,
    /// How many expressions are inside each other here.
    pub depth: usize,
}

/// Kinds of expressions.
#[derive(Debug)]
pub enum Kind {
    /// A literal.
    Const(Value),
    /// The value of a variable.
    Name(Arc<str>),
    /// What a block captured, for the filters that are applied to it.
    Captured,
    /// `(a, b)`
    Tuple(Vec<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `{a: b}`
    Dict(Vec<(Expr, Expr)>),
    /// `a.name`
    Attr(Expr, Arc<str>),
    /// `a[b]`
    Item(Expr, Expr),
    /// `a[b:c:d]`
    Slice(Expr, [Option<Expr>; 3]),
    /// `a(...)`
    Call(Expr, Args),
    /// `a | name(...)`
    Filter(Expr, Arc<str>, Args),
    /// `a is name(...)`
    Test(Expr, Arc<str>, Args),
    /// `not a`
    Not(Expr),
    /// `-a`
    Minus(Expr),
    /// `+a`
    Plus(Expr),
    /// `a op b`
    Binary(Expr, Binary, Expr),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    /// `a < b < c`
    Compare(Expr, Vec<(Compare, Expr)>),
    /// `a and b`
    And(Expr, Expr),
    /// `a or b`
    Or(Expr, Expr),
    /// `a if test else b`: test, a, b
    If(Expr, Expr, Option<Expr>),
}

/// Operators of two numbers, or of texts and lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `//`
    FloorDiv,
    /// `%`
    Rem,
    /// `**`
    Pow,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `in`
    In,
    /// `not in`
    NotIn,
}

/// What a call gives.
#[derive(Debug, Default)]
pub struct Args {
    /// `a`
    pub positional: Vec<Expr>,
    /// `name=a`
    pub named: Vec<(Arc<str>, Expr)>,
    /// `*a`
    pub star: Option<Expr>,
    /// `**a`
    pub double_star: Option<Expr>,
}

/// What is assigned to.
#[derive(Debug)]
pub enum Target {
    /// A variable.
    Name(Arc<str>),
    /// Several.
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Attr(Arc<str>, Arc<str>),
}

/// A statement with its line.
#[derive(Debug)]
pub struct Statement {
    /// What it does.
    pub action: Action,
    /// Where it begins.
    pub line: usize,
}

/// What statements do.
#[derive(Debug)]
pub enum Action {
    /// Writes a text.
    Text(String),
    /// Writes a value.
    Print(Expr),
    /// Repeats.
    For(For),
    /// Does the first of these whose condition holds, or the last.
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    /// Assigns.
    Set(Target, Expr),
    /// Assigns what its body writes, after filters.
    SetBlock(Target, Expr, Vec<Statement>),
    /// Assigns within its body.
    With(Vec<(Target, Expr)>, Vec<Statement>),
    /// Defines a macro.
    Macro(Macro),
    /// Calls a macro with another, `caller`.
    CallBlock(Macro, Expr),
    /// Writes what its body writes, after filters.
    FilterBlock(Expr, Vec<Statement>),
    /// Does its body, with variables of its own.
    Scope(Vec<Statement>),
    /// The same, not in sight of the variables around: a block that another template could replace.
    Block(Vec<Statement>),
    /// Hides what is outside under these names.
    Hide(Vec<Arc<str>>),
    /// Leaves the loop.
    Break,
    /// Goes on with the next item.
    Continue,
}

/// A loop.
#[derive(Debug)]
pub struct For {
    /// What items are assigned to.
    pub target: Target,
    /// What is looped over.
    pub over: Expr,
    /// Which items count.
    pub test: Option<Expr>,
    /// Whether `loop(...)` does the loop again.
    pub recursive: bool,
    /// What is done for each item.
    pub body: Vec<Statement>,
    /// What is done if there are none.
    pub otherwise: Vec<Statement>,
}

/// The parameters of a macro, with their defaults.
pub type Parameters = Vec<(Arc<str>, Option<Expr>)>;

/// A macro, or the body of a call block.
#[derive(Debug)]
pub struct Macro {
    /// Its name.
    pub name: Arc<str>,
    /// Its parameters.
    pub parameters: Parameters,
    /// What it does.
    pub body: Vec<Statement>,
    /// Whether it looks at `caller`, `varargs`, `kwargs`.
    pub uses: Uses,
}

/// Names that a macro's body looks at.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "fields are the names")]
pub struct Uses {
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}
