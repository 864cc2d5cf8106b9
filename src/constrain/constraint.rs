//! Constraints on generated text.

use std::{fmt, sync::atomic::AtomicBool};

use llguidance::{Matcher, api::TopLevelGrammar};
use serde_json::json;

use super::{Matching, Vocabulary, compile::compile, cost, gbnf, locate, schema};
use crate::{Error, Result, limits};

/// The source of a constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// JSON that matches a JSON schema (draft 2020-12, or the one it declares).
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// Text that matches a regular expression as a whole.
    Regex(String),
    /// A grammar in the Lark syntax of llguidance.
    Lark(String),
    /// A grammar in llama.cpp's GBNF.
    Gbnf(String),
}

impl Shape {
    /// Returns a GBNF grammar if `text` contains a rule `name ::= …`, otherwise a Lark grammar.
    pub fn grammar(text: String) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let rule = |line: &str| line.trim_start().trim_start_matches(is_name).trim_start().starts_with("::=");
        if text.lines().any(rule) { Self::Gbnf(text) } else { Self::Lark(text) }
    }
}

/// A constraint compiled for a vocabulary. [`Constraint::matching`] starts matching a text.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: Vocabulary,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Constraint {
    /// Compiles `shape`.
    ///
    /// ```
    /// # use hymba::{Constraint, Model, Request, Sampler, Session, SessionOptions, Shape, Vocabulary, generate};
    /// # fn main() -> hymba::Result<()> {
    /// let model = Model::open("models/hymba-demo.gguf")?;
    /// let (tokenizer, mut sampler) = (model.tokenizer()?, Sampler::new(model.sampling()?, 42));
    /// let schema = r#"{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}},
    ///     "required": ["age"], "additionalProperties": false}"#;
    /// let constraint = Constraint::new(&Vocabulary::new(&tokenizer)?, &Shape::JsonSchema(schema.into()))?;
    /// let mut session = Session::new(&model, &SessionOptions::default())?;
    /// let prompt = tokenizer.encode("Lily is", true)?;
    /// let request = Request { prompt: &prompt, constraint: Some(&constraint), ..Request::default() };
    /// let done = generate(&mut session, &tokenizer, &mut sampler, &request, &mut |_| Ok(()))?;
    /// assert!(done.text.starts_with(r#"{"age": "#) && done.text.ends_with('}'));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Constraint`] if a part cannot be enforced exactly; it names the location.
    pub fn new(vocabulary: &Vocabulary, shape: &Shape) -> Result<Self> {
        Self::new_until(vocabulary, shape, &AtomicBool::new(false))
    }

    /// [`Constraint::new`], interrupted by `cancel`.
    pub fn new_until(vocabulary: &Vocabulary, shape: &Shape, cancel: &AtomicBool) -> Result<Self> {
        let compile = |grammar| compile(&vocabulary.factory, grammar, cancel);
        let compiled = match shape {
            Shape::JsonSchema(text) => {
                check_size(text)?;
                let schema = schema::parse(text)?;
                cost::check([&schema])?;
                compile(schema::grammar(schema.clone()))?.map_err(|reason| locate::schema_error(schema, reason, cancel))
            }
            Shape::JsonObject => compile(schema::grammar(json!({"type": "object"})))?.map_err(locate::grammar_error),
            Shape::Regex(text) => {
                check_size(text)?;
                check_depth(text)?;
                compile(regex(text))?.map_err(locate::regex_error)
            }
            Shape::Gbnf(text) => {
                check_size(text)?;
                check_depth(text)?;
                compile(TopLevelGrammar::from_lark(gbnf::to_lark(text)?))?.map_err(locate::grammar_error)
            }
            Shape::Lark(text) => {
                check_size(text)?;
                check_depth(text)?;
                compile(TopLevelGrammar::from_lark(text.clone()))?.map_err(locate::grammar_error)
            }
        };
        Ok(Self { matcher: compiled?, vocabulary: vocabulary.clone() })
    }

    /// Returns the state of matching an empty text.
    pub fn matching(&self) -> Matching {
        // Matchers share no state, so that no text depends on others.
        Matching::new(self.matcher.deep_clone(), self.vocabulary.clone())
    }

    /// Returns the state of matching after the tokens `ids`.
    pub fn matching_after(&self, ids: &[u32]) -> Result<Matching> {
        let mut matching = self.matching();
        ids.iter().try_for_each(|&id| matching.accept(id))?;
        Ok(matching)
    }
}

/// Returns the grammar for texts that `pattern` matches as a whole, with or without anchors.
fn regex(pattern: &str) -> TopLevelGrammar {
    let inner = pattern.strip_prefix('^').unwrap_or(pattern);
    let end = inner.strip_suffix('$').filter(|rest| rest.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 0);
    match end.unwrap_or(inner) {
        "" => TopLevelGrammar::from_lark("start: \"\"".into()),
        inner => TopLevelGrammar::from_regex(inner),
    }
}

fn refused(problem: impl Into<String>) -> Error {
    Error::Constraint { location: None, problem: problem.into() }
}

fn check_size(text: &str) -> Result<()> {
    if text.len() <= limits::CONSTRAINT {
        return Ok(());
    }
    let (bytes, limit) = (text.len(), limits::CONSTRAINT / 1000);
    Err(refused(format!("{bytes} bytes exceed the limit of {limit} KB")))
}

/// Rejects deeply nested brackets, on which recursive parsers could overflow the stack.
fn check_depth(text: &str) -> Result<()> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limits::CONSTRAINT_DEPTH {
            let limit = limits::CONSTRAINT_DEPTH;
            return Err(refused(format!("brackets are nested more than {limit} deep")));
        }
    }
    Ok(())
}
