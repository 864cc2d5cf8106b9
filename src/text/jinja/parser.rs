//! Parsing of statements. The nesting of the syntax tree is limited to [`limits::TEMPLATE_NESTING`].

use std::sync::Arc;

use super::{
    Failure, frames,
    lexer::{self, Token},
    syntax::{Action, Args, Expr, For, Kind, Macro, Parameters, Statement, Target, Uses},
};
use crate::limits;

/// A recursive-descent parser over the tokens of a template.
pub struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    /// Number of open statements and brackets.
    open: usize,
    /// Special names used by the current macro.
    pub(super) uses: Uses,
}

/// Parses a template.
pub fn parse(source: &str) -> Result<Vec<Statement>, Failure> {
    let mut parser = Parser { tokens: lexer::tokens(source)?, at: 0, open: 0, uses: Uses::default() };
    let mut template = parser.body(&[]).map_err(|e| e.at(parser.line()))?;
    frames::hide(&mut template)?;
    Ok(template)
}

impl Parser {
    /// Returns the line number of the next token.
    fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    /// Returns the next token without consuming it.
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    /// Returns the token after the next one without consuming it.
    pub(super) fn peek_second(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    /// Consumes the next token.
    pub(super) fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1); // the last one is the end
        token
    }

    /// Puts the last token back.
    pub(super) fn step_back(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    /// Whether the next token is the operator `operator`.
    pub(super) fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Op(op) if *op == operator)
    }

    /// Whether the next token is the word `word`.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(name) if name == word)
    }

    /// Consumes `operator` if it comes next.
    pub(super) fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        self.at += usize::from(found);
        found
    }

    /// Consumes `word` if it comes next.
    pub(super) fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    /// Consumes `operator`, or fails.
    pub(super) fn expect_op(&mut self, operator: &str) -> Result<(), Failure> {
        if self.skip_op(operator) { Ok(()) } else { Err(self.unexpected(&format!("`{operator}`"))) }
    }

    /// Consumes a name, or fails.
    pub(super) fn name(&mut self) -> Result<Arc<str>, Failure> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.as_str().into();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    /// Returns the error for finding something other than `wanted`.
    pub(super) fn unexpected(&self, wanted: &str) -> Failure {
        let found = match self.peek() {
            Token::Data(_) => "text".to_owned(),
            Token::BlockBegin => "`{%`".into(),
            Token::BlockEnd => "the end of the tag".into(),
            Token::PrintBegin => "`{{`".into(),
            Token::PrintEnd => "`}}`".into(),
            Token::Name(name) => format!("`{name}`"),
            Token::Str(_) => "a string".into(),
            Token::Int(_) | Token::Float(_) => "a number".into(),
            Token::Op(op) => format!("`{op}`"),
            Token::End => "the end of the template".into(),
        };
        Failure::new(format!("expected {wanted}, found {found}"))
    }

    /// Runs `inner` one nesting level deeper.
    pub(super) fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.open == limits::TEMPLATE_NESTING {
            return Err(too_deep());
        }
        self.open += 1;
        let result = inner(self);
        self.open -= 1;
        result
    }

    /// Parses statements up to one of the tags `ends`, whose name is consumed, or without `ends` to the end of the
    /// template.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Failure> {
        let mut statements = Vec::new();
        loop {
            let line = self.line();
            let action = match self.next() {
                Token::Data(text) => Action::Text(text),
                Token::PrintBegin => {
                    let value = self.tuple(true)?;
                    match self.next() {
                        Token::PrintEnd => Action::Print(value),
                        _ => {
                            self.step_back();
                            return Err(self.unexpected("`}}`"));
                        }
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_word(end)) {
                        return Ok(statements);
                    }
                    let action = self.nested(Self::statement)?;
                    self.end_of_tag()?;
                    match action {
                        Some(action) => action,
                        None => continue,
                    }
                }
                Token::End if ends.is_empty() => return Ok(statements),
                Token::End => return Err(Failure::new(format!("`{}` is missing", ends[ends.len() - 1]))),
                _ => {
                    self.step_back();
                    return Err(self.unexpected("text or a tag"));
                }
            };
            statements.push(Statement { action, line });
        }
    }

    fn end_of_tag(&mut self) -> Result<(), Failure> {
        if *self.peek() == Token::BlockEnd {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected("the end of the tag"))
    }

    /// Parses the body of a block, after its opening tag.
    fn block(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Failure> {
        self.skip_op(":");
        self.end_of_tag()?;
        self.body(ends)
    }

    /// Parses the body of a block with a single end tag.
    fn block_to(&mut self, end: &str) -> Result<Vec<Statement>, Failure> {
        let body = self.block(&[end])?;
        self.next();
        Ok(body)
    }

    /// Parses a statement up to the end of its last tag; `None` if it has no effect.
    fn statement(&mut self) -> Result<Option<Action>, Failure> {
        let word = self.name()?;
        Ok(Some(match &*word {
            "for" => self.for_loop()?,
            "if" => self.branches()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.name()?;
                self.expect_op("(")?;
                let parameters = self.parameters()?;
                Action::Macro(self.macro_body(name, parameters, "endmacro")?)
            }
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filters(Expr::new(Kind::Captured)?, true)?;
                Action::FilterBlock(filters, self.block_to("endfilter")?)
            }
            "block" => {
                let name = self.name()?;
                let _ = self.skip_word("scoped") | self.skip_word("required");
                let body = self.block_to("endblock")?;
                self.skip_word(&name);
                Action::Block(body)
            }
            "generation" => Action::Scope(self.block_to("endgeneration")?),
            "print" => {
                let mut values = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    values.push(self.expression()?);
                }
                // Several values are printed one after the other, as with `~`.
                Action::Print(Expr::new(Kind::Concat(values))?)
            }
            "break" => Action::Break,
            "continue" => Action::Continue,
            "include" | "import" | "from" | "extends" => {
                return Err(Failure::new(format!("`{word}` is not supported: a chat template is one file")));
            }
            _ => return Err(Failure::new(format!("unknown tag `{word}`"))),
        }))
    }

    fn for_loop(&mut self) -> Result<Action, Failure> {
        let target = self.target(false)?;
        if !self.skip_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let over = self.tuple(false)?;
        let test = if self.skip_word("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_word("recursive");
        let body = self.block(&["else", "endfor"])?;
        let otherwise = if &*self.name()? == "else" { self.block_to("endfor")? } else { Vec::new() };
        Ok(Action::For(For { target, over, test, recursive, body, otherwise }))
    }

    fn branches(&mut self) -> Result<Action, Failure> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false)?;
            branches.push((condition, self.block(&["elif", "else", "endif"])?));
            match &*self.name()? {
                "elif" => {}
                "else" => return Ok(Action::If(branches, self.block_to("endif")?)),
                _ => return Ok(Action::If(branches, Vec::new())),
            }
        }
    }

    fn set(&mut self) -> Result<Action, Failure> {
        let target = self.target(true)?;
        if self.skip_op("=") {
            return Ok(Action::Set(target, self.tuple(true)?));
        }
        let filters = self.filters(Expr::new(Kind::Captured)?, false)?;
        Ok(Action::SetBlock(target, filters, self.block_to("endset")?))
    }

    fn with(&mut self) -> Result<Action, Failure> {
        let mut values = Vec::new();
        while *self.peek() != Token::BlockEnd && !self.is_op(":") {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Action::With(values, self.block_to("endwith")?))
    }

    fn call_block(&mut self) -> Result<Action, Failure> {
        let parameters = if self.skip_op("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(*call.kind, Kind::Call(..)) {
            return Err(Failure::new("`call` must be followed by a call"));
        }
        Ok(Action::CallBlock(self.macro_body("caller".into(), parameters, "endcall")?, call))
    }

    /// Parses parameters, after `(`.
    fn parameters(&mut self) -> Result<Parameters, Failure> {
        let mut parameters: Parameters = Vec::new();
        while !self.skip_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return Err(Failure::new("a parameter without a default follows one with a default"));
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn macro_body(&mut self, name: Arc<str>, parameters: Parameters, end: &str) -> Result<Macro, Failure> {
        let around = std::mem::take(&mut self.uses);
        let body = self.block_to(end)?;
        let uses = std::mem::replace(&mut self.uses, around);
        Ok(Macro { name, parameters, body, uses })
    }

    /// Parses an assignment target; `attributes`: whether it may be an attribute of a namespace.
    fn target(&mut self, attributes: bool) -> Result<Target, Failure> {
        let first = self.single_target(attributes)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut targets = vec![first];
        while self.skip_op(",") {
            if self.is_word("in") || self.is_op("=") || self.is_op(")") {
                break;
            }
            targets.push(self.single_target(attributes)?);
        }
        Ok(Target::Tuple(targets))
    }

    fn single_target(&mut self, attributes: bool) -> Result<Target, Failure> {
        if self.skip_op("(") {
            let inner = self.nested(|parser| parser.target(false))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(Failure::new(format!("`{name}` cannot be assigned to")));
        }
        if attributes && self.skip_op(".") {
            return Ok(Target::Attr(name, self.name()?));
        }
        Ok(Target::Name(name))
    }
}

/// Returns the error for exceeding the nesting limit.
pub fn too_deep() -> Failure {
    Failure::new(format!("nested more than {} deep", limits::TEMPLATE_NESTING))
}

impl Expr {
    /// Returns an expression, or fails if it is nested too deeply.
    pub fn new(kind: Kind) -> Result<Self, Failure> {
        let within = |args: &Args| {
            let named = args.named.iter().map(|(_, value)| value);
            let all = args.positional.iter().chain(named).chain(&args.star).chain(&args.double_star);
            all.map(|e| e.depth).max().unwrap_or_default()
        };
        let deepest = |all: &[Self]| all.iter().map(|e| e.depth).max().unwrap_or_default();
        let inner = match &kind {
            Kind::Const(_) | Kind::Name(_) | Kind::Captured => 0,
            Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => deepest(items),
            Kind::Dict(pairs) => pairs.iter().map(|(k, v)| k.depth.max(v.depth)).max().unwrap_or_default(),
            Kind::Attr(of, _) | Kind::Not(of) | Kind::Minus(of) | Kind::Plus(of) => of.depth,
            Kind::Item(a, b) | Kind::Binary(a, _, b) | Kind::And(a, b) | Kind::Or(a, b) => a.depth.max(b.depth),
            Kind::Slice(of, bounds) => bounds.iter().flatten().map(|e| e.depth).max().unwrap_or_default().max(of.depth),
            Kind::Call(of, args) | Kind::Filter(of, _, args) | Kind::Test(of, _, args) => of.depth.max(within(args)),
            Kind::Compare(first, others) => {
                others.iter().map(|(_, e)| e.depth).max().unwrap_or_default().max(first.depth)
            }
            Kind::If(a, b, c) => a.depth.max(b.depth).max(c.as_ref().map_or(0, |c| c.depth)),
        };
        if inner == limits::TEMPLATE_NESTING {
            return Err(too_deep());
        }
        Ok(Self { kind: Box::new(kind), depth: inner + 1 })
    }
}
