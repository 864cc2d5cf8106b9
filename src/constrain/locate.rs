//! Finds the part of a schema that cannot be enforced, and the reason.

use std::{
    collections::HashSet,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{compile, schema};
use crate::Error;

/// Maximum number of parts to try.
const TRIALS: usize = 1000;

/// Time limit of the search, after which a larger part is reported.
const PATIENCE: Duration = Duration::from_millis(900);

/// The beginning of llguidance's message for an unknown value of `type`.
const INVALID_TYPE: &str = "Invalid type: ";

/// Returns the error for a schema that llguidance rejected with the message `message`.
pub(super) fn schema_error(schema: Value, message: String, cancel: &AtomicBool) -> Error {
    let (first, root) = (message.clone(), schema.clone());
    let found = compile::bounded(cancel, move |waiting| Ok(Search::new(root, waiting.clone()).from("", message)));
    match found {
        Ok(Ok((pointer, message))) => {
            let keyword = if message.starts_with(INVALID_TYPE) { "/type" } else { "" };
            Error::Constraint { location: Some(format!("#{pointer}{keyword}")), problem: reworded(&message) }
        }
        Err(Error::Cancelled) => Error::Cancelled,
        _ => grammar_error(first),
    }
}

/// Returns the error for a grammar that llguidance rejected with the message `message`.
pub(super) fn grammar_error(message: String) -> Error {
    // For grammars, the message starts with line and column.
    let located = message.strip_prefix("at ").and_then(|rest| {
        let (location, problem) = rest.split_once("): ")?;
        let (line, column) = location.split_once('(')?;
        Some((format!("line {line}, column {column}"), problem))
    });
    match located {
        Some((location, problem)) => Error::Constraint { location: Some(location), problem: reworded(problem) },
        None => Error::Constraint { location: None, problem: reworded(&message) },
    }
}

/// Returns the error for a regular expression. The position in llguidance's message refers to the generated grammar and
/// is dropped.
pub(super) fn regex_error(message: String) -> Error {
    match grammar_error(message) {
        Error::Constraint { problem, .. } => Error::Constraint { location: None, problem },
        other => other,
    }
}

/// Converts a message of llguidance to one line, reworded where that helps.
fn reworded(message: &str) -> String {
    let message = message.split("\n<").next().unwrap_or_default().trim();
    if let Some((_, problem)) = message.split_once("regex parse error:") {
        let problem = problem.rsplit_once("error: ").map_or("it does not parse", |(_, problem)| problem);
        return format!("not a regular expression: {}", problem.lines().next().unwrap_or_default());
    }
    let message = message.lines().next().unwrap_or_default(); // the rest is context or a location
    if let Some(keys) = message.strip_prefix("Unimplemented keys: ") {
        let keys: Vec<String> = serde_json::from_str(keys).unwrap_or_default();
        let named: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
        return format!("{} cannot be enforced", named.join(", "));
    }
    if message.starts_with("oneOf constraints are not supported") {
        return "the options of `oneOf` may overlap, which cannot be ruled out; use `anyOf`".into();
    }
    if let Some(name) = message.strip_prefix(INVALID_TYPE) {
        return format!("unknown type `{name}`");
    }
    if let Some(format) = message.strip_prefix("Unknown format: ") {
        return format!("unknown format `{format}`");
    }
    let message = message.replace("Unsatisfiable schema: ", "nothing can match: ");
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().next() {
        None => "cannot be compiled".into(),
        Some(first) => first.to_lowercase().chain(line.chars().skip(1)).take(400).collect(),
    }
}

/// A search for the smallest rejected part of a schema.
struct Search {
    schema: Value,
    seen: HashSet<String>,
    trials: usize,
    deadline: Instant,
    waiting: compile::Waiting,
}

impl Search {
    fn new(schema: Value, waiting: compile::Waiting) -> Self {
        Self { schema, seen: HashSet::new(), trials: TRIALS, deadline: Instant::now() + PATIENCE, waiting }
    }

    /// Returns the smallest rejected part within the part at `pointer`, and the reason; the part itself is rejected
    /// with the message `message`.
    fn from(&mut self, pointer: &str, message: String) -> (String, String) {
        let (mut pointer, mut message) = (pointer.to_owned(), message);
        'down: loop {
            for part in self.parts(&pointer) {
                let is_over = self.trials == 0 || self.waiting.is_over() || Instant::now() > self.deadline;
                if is_over || !self.seen.insert(part.clone()) {
                    continue;
                }
                self.trials -= 1;
                let refusal = self.refusal(&part);
                // An unsatisfiable part may be optional; then it is not the cause.
                if let Some(more) = refusal.filter(|more| !is_unsatisfiable(more) || is_unsatisfiable(&message)) {
                    (pointer, message) = (part, more);
                    continue 'down;
                }
            }
            return (pointer, message);
        }
    }

    /// Returns the pointers of the direct subschemas at `pointer` and of the schema that it references.
    fn parts(&self, pointer: &str) -> Vec<String> {
        let mut parts = schema::subschemas(&self.schema, pointer);
        // Definitions are visited through their references.
        parts.retain(|part| {
            !part[pointer.len()..].starts_with("/$defs/") && !part[pointer.len()..].starts_with("/definitions/")
        });
        let target = self.schema.pointer(pointer).and_then(|schema| schema.get("$ref")?.as_str()?.strip_prefix('#'));
        parts.extend(
            target.filter(|target| !target.is_empty() && self.schema.pointer(target).is_some()).map(String::from),
        );
        parts
    }

    /// Returns why the part at `pointer` is rejected, if it is.
    fn refusal(&self, pointer: &str) -> Option<String> {
        let root = "hymba:root";
        let mut schema = self.schema.clone();
        let base = schema.get("$id").and_then(Value::as_str).unwrap_or(root).to_owned();
        schema["$id"] = json!(base);
        // Percent-encode the pointer for a URI fragment.
        let fragment: String = pointer.bytes().fold(String::new(), |text, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' | b'$' => {
                text + &char::from(byte).to_string()
            }
            _ => text + &format!("%{byte:02X}"),
        });
        let part = json!({"$id": "hymba:part", "$ref": format!("{base}#{fragment}"), "$defs": {"root": schema}});
        compile::refusal(schema::grammar(part))
    }
}

fn is_unsatisfiable(message: &str) -> bool {
    message.contains("Unsatisfiable schema")
}
