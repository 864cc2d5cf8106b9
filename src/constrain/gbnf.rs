//! Converts llama.cpp's GBNF to Lark.
//!
//! Recursive rules become Lark rules, and everything else becomes terminals, which match greedily in Lark. A grammar
//! without recursion becomes a single terminal, that is, a regular expression.

use std::{collections::HashMap, fmt::Write};

use crate::{Error, Result, limits};

/// Maximum number of rules.
const RULES: usize = 4096;
/// Maximum number of nested repetitions.
const REPEATS: usize = 8;

/// Converts a GBNF grammar whose start rule is `root` to Lark.
pub(super) fn to_lark(source: &str) -> Result<String> {
    let rules = Parser::new(source).rules()?;
    let root = *rules.index.get("root").ok_or_else(|| error(None, "rule `root` is not defined"))?;
    rules.check_names()?;
    let regular = rules.regular();
    if regular[root] {
        let mut lark = format!("start: T{root}\n");
        rules.write(&mut lark, |_| true);
        return Ok(lark);
    }
    let mut lark = format!("start: r{root}\n");
    rules.write(&mut lark, |rule| regular[rule]);
    Ok(lark)
}

fn error(line: Option<usize>, problem: impl Into<String>) -> Error {
    Error::Constraint { location: line.map(|line| format!("line {line}")), problem: problem.into() }
}

/// A part of a rule.
enum Part {
    /// A literal.
    Text(String),
    /// A character class, as a regular expression.
    Character(String),
    /// A rule, by index.
    Rule(usize),
    /// Alternatives.
    Any(Vec<Vec<Part>>),
    /// A repetition with minimum and maximum.
    Times(Box<Part>, u32, Option<u32>),
}

struct Rules {
    /// Rule indices by name.
    index: HashMap<String, usize>,
    /// Rule names with the line of their first occurrence.
    names: Vec<(String, usize)>,
    /// The alternatives of each rule.
    bodies: Vec<Option<Vec<Vec<Part>>>>,
}

impl Rules {
    fn number(&mut self, name: &str, line: usize) -> usize {
        if let Some(&number) = self.index.get(name) {
            return number;
        }
        self.index.insert(name.into(), self.names.len());
        self.names.push((name.into(), line));
        self.bodies.push(None);
        self.names.len() - 1
    }

    fn check_names(&self) -> Result<()> {
        let missing = self.names.iter().zip(&self.bodies).find(|(_, body)| body.is_none());
        missing.map_or(Ok(()), |((name, line), _)| Err(error(Some(*line), format!("rule `{name}` is not defined"))))
    }

    /// Returns the rules for which `predicate` is true, as a fixed point.
    fn fixpoint(&self, predicate: impl Fn(&[Vec<Part>], &[bool]) -> bool) -> Vec<bool> {
        let mut matching = vec![false; self.bodies.len()];
        loop {
            let mut changed = false;
            for (rule, body) in self.bodies.iter().enumerate() {
                if !matching[rule] && predicate(body.as_deref().unwrap_or_default(), &matching) {
                    (matching[rule], changed) = (true, true);
                }
            }
            if !changed {
                return matching;
            }
        }
    }

    /// Returns the rules that are not recursive.
    fn regular(&self) -> Vec<bool> {
        self.fixpoint(|body, matching| body.iter().flatten().all(|part| uses_only(part, matching)))
    }

    /// Returns the rules that match the empty text.
    fn empty(&self) -> Vec<bool> {
        self.fixpoint(may_be_empty)
    }

    /// Writes the rules; those that are `terminal` as terminals.
    fn write(&self, lark: &mut String, terminal: impl Fn(usize) -> bool) {
        let empty = self.empty();
        for (number, body) in self.bodies.iter().enumerate() {
            let body = body.as_deref().unwrap_or_default();
            if terminal(number) {
                let _ = writeln!(lark, "T{number}: {}", alternatives(body, true));
                // Lark terminals must not match the empty text.
                let _ = writeln!(lark, "U{number}: T{number} & /(?s:.+)/");
                let optional = if empty[number] { "?" } else { "" };
                let _ = writeln!(lark, "r{number}: U{number}{optional}");
            } else {
                let _ = writeln!(lark, "r{number}: {}", alternatives(body, false));
            }
        }
    }
}

/// Whether all rules in `part` are in `matching`.
fn uses_only(part: &Part, matching: &[bool]) -> bool {
    match part {
        Part::Rule(rule) => matching[*rule],
        Part::Times(part, ..) => uses_only(part, matching),
        Part::Any(alternatives) => alternatives.iter().flatten().all(|part| uses_only(part, matching)),
        Part::Text(_) | Part::Character(_) => true,
    }
}

/// Whether one of `alternatives` matches the empty text, given the `rules` that do.
fn may_be_empty(alternatives: &[Vec<Part>], rules: &[bool]) -> bool {
    fn part_may(part: &Part, rules: &[bool]) -> bool {
        match part {
            Part::Text(text) => text.is_empty(),
            Part::Character(_) => false,
            Part::Any(alternatives) => may_be_empty(alternatives, rules),
            Part::Times(part, min, _) => *min == 0 || part_may(part, rules),
            Part::Rule(rule) => rules[*rule],
        }
    }
    alternatives.iter().any(|parts| parts.iter().all(|part| part_may(part, rules)))
}

fn alternatives(all: &[Vec<Part>], in_terminal: bool) -> String {
    let sequence = |parts: &Vec<Part>| {
        let parts: Vec<_> = parts.iter().map(|part| part_to_lark(part, in_terminal)).collect();
        if parts.is_empty() { "\"\"".into() } else { parts.join(" ") }
    };
    all.iter().map(sequence).collect::<Vec<_>>().join(" | ")
}

fn part_to_lark(part: &Part, in_terminal: bool) -> String {
    match part {
        Part::Text(text) => {
            let quoted = serde_json::to_string(text).unwrap_or_default();
            quoted.replace('\u{7f}', "\\u007f")
        }
        Part::Character(regex) => format!("/{regex}/"),
        Part::Rule(rule) if in_terminal => format!("T{rule}"),
        Part::Rule(rule) => format!("r{rule}"),
        Part::Any(all) => format!("({})", alternatives(all, in_terminal)),
        Part::Times(part, min, max) => {
            let part = part_to_lark(part, in_terminal);
            match (min, max) {
                (0, None) => format!("({part})*"),
                (1, None) => format!("({part})+"),
                (0, Some(1)) => format!("({part})?"),
                (min, None) => format!("({part}){{{min},}}"),
                (min, Some(max)) => format!("({part}){{{min},{max}}}"),
            }
        }
    }
}

struct Parser<'s> {
    rest: &'s str,
    line: usize,
    depth: usize,
    rules: Rules,
}

impl<'s> Parser<'s> {
    fn new(source: &'s str) -> Self {
        let rules = Rules { index: HashMap::new(), names: Vec::new(), bodies: Vec::new() };
        Self { rest: source, line: 1, depth: 0, rules }
    }

    fn rules(mut self) -> Result<Rules> {
        self.skip(true);
        while !self.rest.is_empty() {
            let name = self.name().ok_or_else(|| self.syntax_error("expected a rule name"))?;
            self.skip(false);
            if !self.eat("::=") {
                return Err(self.syntax_error(format!("expected `::=` after `{name}`")));
            }
            self.skip(true);
            let line = self.line;
            let body = self.alternatives()?;
            if self.rules.names.len() > RULES {
                return Err(self.syntax_error(format!("more than {RULES} rules")));
            }
            let number = self.rules.number(&name, line);
            if self.rules.bodies[number].replace(body).is_some() {
                return Err(self.syntax_error(format!("rule `{name}` is already defined")));
            }
            if !self.rest.is_empty() && !self.rest.starts_with(['\n', '\r']) {
                return Err(self.syntax_error("expected the end of the line after a rule"));
            }
            self.skip(true);
        }
        Ok(self.rules)
    }

    fn syntax_error(&self, problem: impl Into<String>) -> Error {
        error(Some(self.line), problem)
    }

    /// Skips white space and comments; line breaks only within a rule.
    fn skip(&mut self, lines: bool) {
        loop {
            let at = self.rest.find(|c| !matches!(c, ' ' | '\t')).unwrap_or(self.rest.len());
            self.rest = &self.rest[at..];
            if self.rest.starts_with('#') {
                self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..];
            }
            match self.rest.strip_prefix('\n').or(self.rest.strip_prefix("\r\n")) {
                Some(rest) if lines => (self.rest, self.line) = (rest, self.line + 1),
                _ => return,
            }
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn name(&mut self) -> Option<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(name.to_owned()).filter(|name| !name.is_empty())
    }

    fn alternatives(&mut self) -> Result<Vec<Vec<Part>>> {
        let mut all = vec![self.sequence()?];
        while self.eat("|") {
            self.skip(true);
            all.push(self.sequence()?);
        }
        Ok(all)
    }

    fn sequence(&mut self) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        loop {
            let part = match self.rest.chars().next() {
                Some('"') => self.text()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.rest = &self.rest[1..];
                    Part::Character("(?s:.)".into())
                }
                Some('(') => self.group()?,
                Some(c) if c.is_ascii_alphanumeric() || c == '_' || c == '-' => {
                    let (line, name) = (self.line, self.name().unwrap_or_default());
                    Part::Rule(self.rules.number(&name, line))
                }
                Some('<' | '!') => return Err(self.syntax_error("token names are not supported; use their text")),
                Some('*' | '+' | '?' | '{') => return Err(self.syntax_error("there is nothing to repeat here")),
                _ => return Ok(parts),
            };
            let part = self.repeated(part)?;
            parts.push(part);
            self.skip(self.depth > 0);
        }
    }

    fn group(&mut self) -> Result<Part> {
        self.rest = &self.rest[1..];
        self.depth += 1;
        if self.depth > limits::CONSTRAINT_DEPTH {
            return Err(self.syntax_error("brackets are nested too deeply"));
        }
        self.skip(true);
        let all = self.alternatives()?;
        self.depth -= 1;
        if self.eat(")") { Ok(Part::Any(all)) } else { Err(self.syntax_error("unclosed `(`")) }
    }

    fn repeated(&mut self, mut part: Part) -> Result<Part> {
        for _ in 0..REPEATS {
            self.skip(self.depth > 0);
            let (min, max) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let end = self.rest.find('}').ok_or_else(|| self.syntax_error("unclosed `{`"))?;
                    let range = &self.rest[1..end];
                    self.rest = &self.rest[end..];
                    self.range(range)?
                }
                _ => return Ok(part),
            };
            self.rest = &self.rest[1..];
            part = Part::Times(Box::new(part), min, max);
        }
        Err(self.syntax_error("repetitions are nested too deeply"))
    }

    /// Parses `{m}`, `{m,}`, `{,n}` or `{m,n}`.
    fn range(&self, text: &str) -> Result<(u32, Option<u32>)> {
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|&n| n <= 100_000);
        let parsed = match text.split_once(',') {
            None => number(text).map(|n| (n, Some(n))),
            Some((min, max)) => {
                let min = if min.trim().is_empty() { Some(0) } else { number(min) };
                let max = if max.trim().is_empty() { Some(None) } else { number(max).map(Some) };
                min.zip(max)
            }
        };
        let in_order = parsed.filter(|&(min, max)| max.is_none_or(|max| min <= max));
        in_order.ok_or_else(|| self.syntax_error(format!("invalid repetition `{{{text}}}`")))
    }

    fn text(&mut self) -> Result<Part> {
        self.rest = &self.rest[1..];
        let mut text = String::new();
        loop {
            match self.character('"')? {
                None => return Ok(Part::Text(text)),
                Some(c) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Part> {
        self.rest = &self.rest[1..];
        let mut class = if self.eat("^") { "[^".to_owned() } else { "[".to_owned() };
        let empty_len = class.len();
        while let Some(first) = self.character(']')? {
            let _ = write!(class, "\\x{{{:X}}}", u32::from(first));
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.rest = &self.rest[1..];
                let last = self.character(']')?.ok_or_else(|| self.syntax_error("incomplete character range"))?;
                if last < first {
                    return Err(self.syntax_error(format!("invalid character range `{first}-{last}`")));
                }
                let _ = write!(class, "-\\x{{{:X}}}", u32::from(last));
            }
        }
        match (class.len() == empty_len, class.starts_with("[^")) {
            (true, true) => Ok(Part::Character("(?s:.)".into())),
            (true, false) => Err(self.syntax_error("`[]` matches nothing")),
            _ => Ok(Part::Character(class + "]")),
        }
    }

    /// Returns the next character of a literal or a class; `None` at its end.
    fn character(&mut self, end: char) -> Result<Option<char>> {
        let mut rest = self.rest.chars();
        let found = match rest.next() {
            None | Some('\n') => return Err(self.syntax_error(format!("`{end}` is missing at the end of the line"))),
            Some(c) if c == end => None,
            Some('\\') => {
                let escape = rest.next();
                let digits = match escape {
                    Some('x') => 2,
                    Some('u') => 4,
                    Some('U') => 8,
                    _ => 0,
                };
                let c = match escape {
                    Some('n') => Some('\n'),
                    Some('r') => Some('\r'),
                    Some('t') => Some('\t'),
                    Some('x' | 'u' | 'U') => {
                        let text = rest.as_str().get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
                        rest = rest.as_str().get(digits..).unwrap_or_default().chars();
                        text.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32)
                    }
                    Some(
                        c @ ('"' | '[' | ']' | '\\' | '-' | '^' | '/' | '.' | '(' | ')' | '{' | '}' | '|' | '*' | '+'
                        | '?'),
                    ) => Some(c),
                    _ => None,
                };
                Some(c.ok_or_else(|| self.syntax_error("unknown escape sequence"))?)
            }
            Some(c) => Some(c),
        };
        self.rest = rest.as_str();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &str) -> String {
        to_lark(source).unwrap_err().to_string()
    }

    #[test]
    fn grammars_without_recursion_become_one_terminal() {
        let lark =
            to_lark("# comment\nroot ::= word (\" \" word){0,3} \".\"\nword ::= [a-z]+ | \n  \"I\\u0027m\"").unwrap();
        assert!(lark.starts_with("start: T1\n"), "{lark}");
        assert!(lark.contains("(/[\\x{61}-\\x{7A}]/)+ | \"I'm\""), "{lark}");
        let lark = to_lark("root ::= \"(\" root \")\" | ws\nws ::= [ \\t]*").unwrap();
        assert!(lark.starts_with("start: r0\n") && lark.contains("r1: U1?"), "{lark}");
    }

    #[test]
    fn errors_include_the_line_number() {
        assert_eq!(refusal("a ::= \"x\""), "rule `root` is not defined");
        assert_eq!(refusal("root ::= \"x\" |\n b"), "at line 2: rule `b` is not defined");
        assert_eq!(refusal("root ::= \"x\n"), "at line 1: `\"` is missing at the end of the line");
        assert_eq!(refusal("\nroot ::= (\"x\" "), "at line 2: unclosed `(`");
        assert_eq!(refusal("root ::= [z-a]"), "at line 1: invalid character range `z-a`");
        assert_eq!(refusal("root ::= \"a\"{3,2}"), "at line 1: invalid repetition `{3,2}`");
        assert_eq!(refusal("root ::= <think>"), "at line 1: token names are not supported; use their text");
        assert_eq!(refusal("root ::= \"\\q\""), "at line 1: unknown escape sequence");
        assert_eq!(refusal("root = \"a\""), "at line 1: expected `::=` after `root`");
    }
}
