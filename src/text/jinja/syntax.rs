//! The syntax tree of a template.

use std::sync::Arc;

use super::value::Value;

/// An expression.
#[derive(Debug)]
pub struct Expr {
    /// The kind of expression.
    pub kind: Box<Kind>,
    /// The nesting depth of the expression.
    pub depth: usize,
}

/// Kinds of expressions.
#[derive(Debug)]
pub enum Kind {
    /// A literal.
    Const(Value),
    /// The value of a variable.
    Name(Arc<str>),
    /// The output of a block, to which the filters of the block are applied.
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
    /// `a if test else b`, in the order test, a, b
    If(Expr, Expr, Option<Expr>),
}

/// Binary operators.
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

/// Comparison operators.
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

/// The arguments of a call.
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

/// The target of an assignment.
#[derive(Debug)]
pub enum Target {
    /// A variable.
    Name(Arc<str>),
    /// A tuple of targets.
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Attr(Arc<str>, Arc<str>),
}

/// A statement with its position.
#[derive(Debug)]
pub struct Statement {
    /// The action.
    pub action: Action,
    /// The line on which it begins.
    pub line: usize,
}

/// The actions of statements.
#[derive(Debug)]
pub enum Action {
    /// Outputs text.
    Text(String),
    /// Outputs a value.
    Print(Expr),
    /// Runs a loop.
    For(For),
    /// Runs the first branch whose condition holds, or otherwise the last.
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    /// Assigns a value.
    Set(Target, Expr),
    /// Assigns the filtered output of the body.
    SetBlock(Target, Expr, Vec<Statement>),
    /// Assigns variables for the body.
    With(Vec<(Target, Expr)>, Vec<Statement>),
    /// Defines a macro.
    Macro(Macro),
    /// Calls a macro, passing the body as the macro `caller`.
    CallBlock(Macro, Expr),
    /// Outputs the filtered output of the body.
    FilterBlock(Expr, Vec<Statement>),
    /// Runs the body in a new scope.
    Scope(Vec<Statement>),
    /// Runs the body without access to the local variables around it: a block that another template could override.
    Block(Vec<Statement>),
    /// Hides outer variables.
    Hide(Vec<Arc<str>>),
    /// Leaves the loop.
    Break,
    /// Continues with the next item.
    Continue,
}

/// A `for` loop.
#[derive(Debug)]
pub struct For {
    /// The assignment target for items.
    pub target: Target,
    /// The iterable.
    pub over: Expr,
    /// The condition that selects items.
    pub test: Option<Expr>,
    /// Whether `loop(...)` may run the loop recursively.
    pub recursive: bool,
    /// The body.
    pub body: Vec<Statement>,
    /// The `else` branch, for an empty loop.
    pub otherwise: Vec<Statement>,
}

/// The parameters of a macro, with their defaults.
pub type Parameters = Vec<(Arc<str>, Option<Expr>)>;

/// A macro, or the body of a call block.
#[derive(Debug)]
pub struct Macro {
    /// The name.
    pub name: Arc<str>,
    /// The parameters.
    pub parameters: Parameters,
    /// The body.
    pub body: Vec<Statement>,
    /// Which special names it uses.
    pub uses: Uses,
}

/// Special names that a macro body can use.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "fields are the names")]
pub struct Uses {
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}
