//! Parsing of expressions.

use std::sync::Arc;

use super::{
    Failure,
    lexer::Token,
    parser::Parser,
    syntax::{Args, Binary, Compare, Expr, Kind},
    value::Value,
};

type Parsed = Result<Expr, Failure>;

impl Parser {
    /// Parses an expression.
    pub(super) fn expression(&mut self) -> Parsed {
        self.nested(Self::conditional)
    }

    /// Parses an expression, or a tuple if a comma follows.
    pub(super) fn tuple(&mut self, conditional: bool) -> Parsed {
        let one = |parser: &mut Self| parser.nested(if conditional { Self::conditional } else { Self::or });
        let first = one(self)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",") {
            if self.ends_tuple() {
                break;
            }
            items.push(one(self)?);
        }
        Expr::new(Kind::Tuple(items))
    }

    fn ends_tuple(&self) -> bool {
        matches!(self.peek(), Token::PrintEnd | Token::BlockEnd) || self.is_op(")") || self.is_word("recursive")
    }

    fn conditional(&mut self) -> Parsed {
        let mut value = self.or()?;
        while self.skip_word("if") {
            let test = self.or()?;
            let otherwise = if self.skip_word("else") { Some(self.nested(Self::conditional)?) } else { None };
            value = Expr::new(Kind::If(test, value, otherwise))?;
        }
        Ok(value)
    }

    fn or(&mut self) -> Parsed {
        let mut left = self.and()?;
        while self.skip_word("or") {
            left = Expr::new(Kind::Or(left, self.and()?))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed {
        let mut left = self.not()?;
        while self.skip_word("and") {
            left = Expr::new(Kind::And(left, self.not()?))?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed {
        if self.skip_word("not") {
            let value = self.nested(Self::not)?;
            return Expr::new(Kind::Not(value));
        }
        self.compare()
    }

    fn compare(&mut self) -> Parsed {
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let operator = match self.peek() {
                Token::Op("==") => Compare::Eq,
                Token::Op("!=") => Compare::Ne,
                Token::Op("<") => Compare::Lt,
                Token::Op("<=") => Compare::Le,
                Token::Op(">") => Compare::Gt,
                Token::Op(">=") => Compare::Ge,
                Token::Name(name) if name == "in" => Compare::In,
                Token::Name(name) if name == "not" && *self.peek_second() == Token::Name("in".into()) => Compare::NotIn,
                _ => break,
            };
            self.next();
            if operator == Compare::NotIn {
                self.next();
            }
            others.push((operator, self.sum()?));
        }
        if others.is_empty() { Ok(first) } else { Expr::new(Kind::Compare(first, others)) }
    }

    /// Consumes one of the operators `of` and returns its operation.
    fn operator(&mut self, of: &[(&str, Binary)]) -> Option<Binary> {
        of.iter().find(|(operator, _)| self.skip_op(operator)).map(|(_, binary)| *binary)
    }

    fn sum(&mut self) -> Parsed {
        let mut left = self.concat()?;
        while let Some(operator) = self.operator(&[("+", Binary::Add), ("-", Binary::Sub)]) {
            left = Expr::new(Kind::Binary(left, operator, self.concat()?))?;
        }
        Ok(left)
    }

    fn concat(&mut self) -> Parsed {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Expr::new(Kind::Concat(parts))
    }

    fn product(&mut self) -> Parsed {
        const OPERATORS: [(&str, Binary); 4] =
            [("*", Binary::Mul), ("/", Binary::Div), ("//", Binary::FloorDiv), ("%", Binary::Rem)];
        let mut left = self.power()?;
        while let Some(operator) = self.operator(&OPERATORS) {
            left = Expr::new(Kind::Binary(left, operator, self.power()?))?;
        }
        Ok(left)
    }

    fn power(&mut self) -> Parsed {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            left = Expr::new(Kind::Binary(left, Binary::Pow, self.unary(true)?))?;
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Parsed {
        let value = if self.skip_op("-") {
            let value = self.nested(|parser| parser.unary(false))?;
            Expr::new(Kind::Minus(value))?
        } else if self.skip_op("+") {
            let value = self.nested(|parser| parser.unary(false))?;
            Expr::new(Kind::Plus(value))?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filters { self.filters_and_tests(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Parsed {
        let kind = match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Kind::Const(Value::Bool(true)),
                "false" | "False" => Kind::Const(Value::Bool(false)),
                "none" | "None" => Kind::Const(Value::None),
                _ => {
                    match name.as_str() {
                        "caller" => self.uses.caller = true,
                        "varargs" => self.uses.varargs = true,
                        "kwargs" => self.uses.kwargs = true,
                        _ => {}
                    }
                    Kind::Name(name.into())
                }
            },
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Kind::Const(Value::from(text))
            }
            Token::Int(number) => Kind::Const(Value::Int(number)),
            Token::Float(number) => Kind::Const(Value::Float(number)),
            Token::Op("(") => {
                if self.skip_op(")") {
                    return Expr::new(Kind::Tuple(Vec::new()));
                }
                let inner = self.tuple(true)?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Token::Op("[") => Kind::List(self.items("]", Self::expression)?),
            Token::Op("{") => Kind::Dict(self.items("}", |parser| {
                let key = parser.expression()?;
                parser.expect_op(":")?;
                Ok((key, parser.expression()?))
            })?),
            _ => {
                self.step_back();
                return Err(self.unexpected("an expression"));
            }
        };
        Expr::new(kind)
    }

    /// Parses a comma-separated list up to `end`.
    fn items<T>(&mut self, end: &str, one: impl Fn(&mut Self) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(end) {
                    break;
                }
            }
            items.push(one(self)?);
        }
        Ok(items)
    }

    fn postfix(&mut self, mut value: Expr) -> Parsed {
        loop {
            if self.skip_op(".") {
                let kind = match self.peek() {
                    Token::Int(index) => {
                        let index = Expr::new(Kind::Const(Value::Int(*index)))?;
                        self.next();
                        Kind::Item(value, index)
                    }
                    _ => Kind::Attr(value, self.name()?),
                };
                value = Expr::new(kind)?;
            } else if self.skip_op("[") {
                value = self.subscript(value)?;
            } else if self.skip_op("(") {
                let args = self.args()?;
                value = Expr::new(Kind::Call(value, args))?;
            } else {
                return Ok(value);
            }
        }
    }

    /// Parses an index or a slice, after `[`.
    fn subscript(&mut self, value: Expr) -> Parsed {
        let first = if self.is_op(":") { None } else { Some(self.expression()?) };
        if !self.skip_op(":") {
            let mut items: Vec<_> = first.into_iter().collect();
            let is_tuple = self.is_op(",");
            while self.skip_op(",") {
                items.push(self.expression()?);
            }
            self.expect_op("]")?;
            let index = match items.pop() {
                Some(index) if !is_tuple => index,
                last => Expr::new(Kind::Tuple(items.into_iter().chain(last).collect()))?,
            };
            return Expr::new(Kind::Item(value, index));
        }
        let ends = |parser: &Self| parser.is_op(":") || parser.is_op("]");
        let stop = if ends(self) { None } else { Some(self.expression()?) };
        let step = if self.skip_op(":") && !ends(self) { Some(self.expression()?) } else { None };
        self.expect_op("]")?;
        Expr::new(Kind::Slice(value, [first, stop, step]))
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Parsed {
        loop {
            if self.is_op("|") {
                value = self.filters(value, false)?;
            } else if self.skip_word("is") {
                value = self.test(value)?;
            } else if self.skip_op("(") {
                let args = self.args()?;
                value = Expr::new(Kind::Call(value, args))?;
            } else {
                return Ok(value);
            }
        }
    }

    /// Parses the filters applied to `value`; `inline`: the first one has no `|`.
    pub(super) fn filters(&mut self, mut value: Expr, mut inline: bool) -> Parsed {
        while std::mem::take(&mut inline) || self.skip_op("|") {
            let name = self.dotted_name()?;
            let args = if self.skip_op("(") { self.args()? } else { Args::default() };
            value = Expr::new(Kind::Filter(value, name, args))?;
        }
        Ok(value)
    }

    /// Parses the name of a filter or a test, which may be dotted. Unknown names fail only when they are evaluated.
    fn dotted_name(&mut self) -> Result<Arc<str>, Failure> {
        let mut name = self.name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr) -> Parsed {
        let negated = self.skip_word("not");
        let name = self.dotted_name()?;
        let has_argument = match self.peek() {
            Token::Name(word) if word == "is" => return Err(Failure::new("tests cannot be chained with `is`")),
            Token::Name(word) => !matches!(word.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => true,
            _ => false,
        };
        let args = if self.skip_op("(") {
            self.args()?
        } else if has_argument {
            let argument = self.primary()?;
            Args { positional: vec![self.postfix(argument)?], ..Args::default() }
        } else {
            Args::default()
        };
        let test = Expr::new(Kind::Test(value, name, args))?;
        if negated { Expr::new(Kind::Not(test)) } else { Ok(test) }
    }

    /// Parses call arguments, after `(`.
    fn args(&mut self) -> Result<Args, Failure> {
        let mut args = Args::default();
        let bad = || Err(Failure::new("invalid order of arguments in a call"));
        let mut first = true;
        while !self.skip_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            if self.skip_op("*") {
                if args.star.is_some() || args.double_star.is_some() {
                    return bad();
                }
                args.star = Some(self.expression()?);
            } else if self.skip_op("**") {
                if args.double_star.is_some() {
                    return bad();
                }
                args.double_star = Some(self.expression()?);
            } else if matches!(self.peek(), Token::Name(_)) && *self.peek_second() == Token::Op("=") {
                if args.double_star.is_some() {
                    return bad();
                }
                let name = self.name()?;
                self.next();
                args.named.push((name, self.expression()?));
            } else {
                if args.star.is_some() || args.double_star.is_some() || !args.named.is_empty() {
                    return bad();
                }
                args.positional.push(self.expression()?);
            }
        }
        Ok(args)
    }
}
