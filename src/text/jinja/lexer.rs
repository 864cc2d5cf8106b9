//! Splits a template into tokens. White space control matches Jinja2 with `trim_blocks` and `lstrip_blocks`.

use super::{Failure, python::is_space};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Text outside of tags.
    Data(String),
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    /// `{{`
    PrintBegin,
    /// `}}`
    PrintEnd,
    /// A name or a keyword.
    Name(String),
    /// A string literal, unescaped.
    Str(String),
    /// A number.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// An operator or a bracket.
    Op(&'static str),
    /// The end of the template.
    End,
}

/// Longest first, so that the first match is the longest.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// Returns the tokens of `source`, each with its line number, starting at 1.
pub fn tokens(source: &str) -> Result<Vec<(Token, usize)>, Failure> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, counted: 0, at_line_start: true, tokens: Vec::new() };
    lexer.run().map_err(|e| e.at(lexer.line))?;
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Line breaks before this position are already counted in `line`.
    counted: usize,
    /// Whether the last tag consumed the line break after it.
    at_line_start: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.count();
        self.tokens.push((token, self.line));
    }

    fn count(&mut self) {
        self.line += self.source[self.counted..self.at].matches('\n').count();
        self.counted = self.at;
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(is_space).len();
    }

    /// Consumes `text` if it comes next.
    fn skip(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Consumes a white space control sign, `+` or `-`.
    fn sign(&mut self) -> char {
        match self.rest().chars().next() {
            Some(sign @ ('-' | '+')) => {
                self.at += 1;
                sign
            }
            _ => ' ',
        }
    }

    /// Appends the text before a tag.
    fn push_data(&mut self, text: &str, sign: char, is_print: bool) {
        let mut text = text;
        if sign == '-' {
            text = text.trim_end_matches(is_space);
        } else if sign != '+' && !is_print {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            if (line > 0 || self.at_line_start) && text[line..].chars().all(is_space) {
                text = &text[..line];
            }
        }
        if !text.is_empty() {
            self.push(Token::Data(text.into()));
        }
    }

    /// Consumes the white space after a tag: all of it after `-`, otherwise one line break if `trims`.
    fn after_tag(&mut self, sign: char, trims: bool) {
        let end = self.at;
        if sign == '-' {
            self.skip_space();
        } else if sign != '+' && trims {
            self.skip("\n");
        }
        self.at_line_start = self.source[end..self.at].ends_with('\n');
    }

    fn run(&mut self) -> Result<(), Failure> {
        while self.at < self.source.len() {
            let start = self.at;
            let mut tags = self.rest().match_indices('{');
            let tag =
                tags.find(|(at, _)| matches!(self.source.as_bytes().get(start + at + 1), Some(b'{' | b'%' | b'#')));
            let Some((offset, _)) = tag else {
                self.push_data(self.rest(), '+', false);
                self.at = self.source.len();
                break;
            };
            self.at += offset + 2;
            let kind = self.source.as_bytes()[self.at - 1];
            let text = &self.source[start..self.at - 2];
            let sign = self.sign();
            // The token for the text gets the line number of its start.
            let after = std::mem::replace(&mut self.at, start);
            self.push_data(text, sign, kind == b'{');
            self.at = after;
            self.at_line_start = false;
            match kind {
                b'#' => self.comment()?,
                b'{' => {
                    self.push(Token::PrintBegin);
                    self.inside("}}", Token::PrintEnd, false)?;
                }
                _ if self.begins_raw() => self.raw()?,
                _ => {
                    self.push(Token::BlockBegin);
                    self.inside("%}", Token::BlockEnd, true)?;
                }
            }
        }
        self.push(Token::End);
        Ok(())
    }

    fn comment(&mut self) -> Result<(), Failure> {
        let end = self.rest().find("#}").ok_or_else(|| Failure::new("unterminated comment"))?;
        let sign = self.rest()[..end].chars().next_back().filter(|c| "+-".contains(*c)).unwrap_or(' ');
        self.at += end + 2;
        self.after_tag(sign, true);
        Ok(())
    }

    /// Consumes ` raw %}` if it comes next.
    fn begins_raw(&mut self) -> bool {
        let start = self.at;
        self.skip_space();
        if self.skip("raw") {
            self.skip_space();
            let sign = if self.skip("-") { '-' } else { ' ' };
            if self.skip("%}") {
                self.after_tag(sign, false);
                return true;
            }
        }
        self.at = start;
        false
    }

    fn raw(&mut self) -> Result<(), Failure> {
        let start = self.at;
        while let Some(offset) = self.rest().find("{%") {
            let end = self.at + offset;
            self.at = end + 2;
            let before = self.sign();
            self.skip_space();
            if !self.skip("endraw") {
                self.at = end + 2;
                continue;
            }
            self.skip_space();
            let after = self.sign();
            if self.skip("%}") {
                let at = std::mem::replace(&mut self.at, start);
                self.push_data(&self.source[start..end], before, false);
                self.at = at;
                self.after_tag(after, true);
                return Ok(());
            }
            self.at = end + 2;
        }
        // Jinja2 reports this only if the block has content.
        if start == self.source.len() { Ok(()) } else { Err(Failure::new("unterminated raw block")) }
    }

    /// Splits a tag into tokens, up to `close`.
    fn inside(&mut self, close: &str, end: Token, trims: bool) -> Result<(), Failure> {
        let mut open = Vec::new();
        loop {
            self.skip_space();
            if open.is_empty() {
                let sign = match self.rest().as_bytes() {
                    [sign @ (b'-' | b'+'), rest @ ..]
                        if rest.starts_with(close.as_bytes()) && (*sign == b'-' || trims) =>
                    {
                        char::from(*sign)
                    }
                    _ => ' ',
                };
                let width = if sign == ' ' { 0 } else { 1 };
                if self.rest()[width..].starts_with(close) {
                    self.push(end);
                    self.at += width + close.len();
                    self.after_tag(sign, trims);
                    return Ok(());
                }
            }
            let Some(first) = self.rest().chars().next() else {
                return Err(Failure::new(format!("`{close}` is missing")));
            };
            let token = match first {
                '0'..='9' => self.number()?,
                '\'' | '"' => self.string(first)?,
                c if c == '_' || c.is_alphabetic() => {
                    let name = self.rest().split(|c: char| c != '_' && !c.is_alphanumeric()).next().unwrap_or_default();
                    self.push(Token::Name(name.into()));
                    self.at += name.len();
                    continue;
                }
                c => {
                    let found = OPERATORS.iter().find(|operator| self.rest().starts_with(**operator));
                    let Some(operator) = found else { return Err(Failure::new(format!("unexpected character {c:?}"))) };
                    match *operator {
                        "(" => open.push(")"),
                        "[" => open.push("]"),
                        "{" => open.push("}"),
                        ")" | "]" | "}" if open.pop() != Some(operator) => {
                            return Err(Failure::new(format!("unexpected `{operator}`")));
                        }
                        _ => {}
                    }
                    self.push(Token::Op(operator));
                    self.at += operator.len();
                    continue;
                }
            };
            self.push(token);
        }
    }

    fn number(&mut self) -> Result<Token, Failure> {
        let text = self.rest();
        let bad = || Failure::new("number too large");
        for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
                let length = digits(&text[2..], radix);
                if length > 0 {
                    self.at += 2 + length;
                    let value = i128::from_str_radix(&text[2..2 + length].replace('_', ""), radix);
                    return Ok(Token::Int(value.map_err(|_| bad())?));
                }
            }
        }
        let whole = digits(text, 10);
        let mut end = whole;
        // `x.0.1` is two indices
        let mut is_float = false;
        if !self.source[..self.at].ends_with('.') {
            if text[end..].starts_with('.') {
                let fraction = digits(&text[end + 1..], 10);
                if fraction > 0 && !text[end + 1..].starts_with('_') {
                    (end, is_float) = (end + 1 + fraction, true);
                }
            }
            if text[end..].starts_with(['e', 'E']) {
                let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
                let exponent = digits(&text[end + 1 + sign..], 10);
                if exponent > 0 && !text[end + 1 + sign..].starts_with('_') {
                    (end, is_float) = (end + 1 + sign + exponent, true);
                }
            }
        }
        if !is_float && text.starts_with('0') {
            end = text.len() - text.trim_start_matches(['0', '_']).len();
            end = text[..end].trim_end_matches('_').len();
        }
        self.at += end;
        let plain = text[..end].replace('_', "");
        if is_float {
            return plain.parse().map(Token::Float).map_err(|_| bad());
        }
        plain.parse().map(Token::Int).map_err(|_| bad())
    }

    fn string(&mut self, quote: char) -> Result<Token, Failure> {
        let text = &self.rest()[1..];
        let mut escaped = false;
        let end = text.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.ok_or_else(|| Failure::new("unterminated string"))?;
        let value = unescape(&text[..end])?;
        self.at += end + 2;
        Ok(Token::Str(value))
    }
}

/// Returns the length of the digits at the start of `text`, including single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        if c.is_digit(radix) {
            end = at + 1;
        } else if c != '_' || end != at {
            break;
        }
    }
    end
}

/// Decodes the escapes of a string literal, like Python's `unicode-escape`.
fn unescape(text: &str) -> Result<String, Failure> {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            value.push(c);
            continue;
        }
        let bad = || Failure::new("invalid escape in a string");
        let escape = chars.next().ok_or_else(bad)?;
        let hex = |chars: &mut std::str::Chars<'_>, count: usize| {
            let digits = chars.as_str().get(..count).ok_or_else(bad)?;
            *chars = chars.as_str()[count..].chars();
            u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).ok_or_else(bad)
        };
        let c = match escape {
            '\n' => continue,
            '\\' | '\'' | '"' => escape,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            'x' => hex(&mut chars, 2)?,
            'u' => hex(&mut chars, 4)?,
            'U' => hex(&mut chars, 8)?,
            'N' => return Err(Failure::new("characters by name, \\N{...}, are not supported")),
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    let Some(digit) = chars.clone().next().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                char::from_u32(code).ok_or_else(bad)?
            }
            // Python sees `\xe9` for `é` in the source, so a backslash before it escapes that backslash.
            c if !c.is_ascii() => {
                value.push_str(&super::python::ascii_escape(c));
                continue;
            }
            c => {
                value.push('\\');
                c
            }
        };
        value.push(c);
    }
    Ok(value)
}
