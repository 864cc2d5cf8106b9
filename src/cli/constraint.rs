//! Flags for constrained output.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use hymba::{
    Error,
    constrain::{Constraint, Shape, Vocabulary},
    text::Tokenizer,
};

use super::{prompt, usage::Usage};

/// Constraints, at most one.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Structured output")]
pub struct ConstraintArgs {
    /// Constrain the output to a JSON schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON", conflicts_with_all = ["json_object", "regex", "grammar"])]
    json_schema: Option<String>,
    /// Constrain the output to a JSON object
    #[arg(long, conflicts_with_all = ["regex", "grammar"])]
    json_object: bool,
    /// Constrain the output to a regular expression, which must match it as a whole
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, conflicts_with = "grammar")]
    regex: Option<String>,
    /// Constrain the output to a grammar in a file: Lark, or GBNF (rules with `::=`)
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl ConstraintArgs {
    /// Returns the requested constraint and the flag's name for messages. Files are read but not compiled.
    pub fn shape(&self, cancel: &AtomicBool) -> anyhow::Result<Option<(String, Shape)>> {
        Ok(match self {
            Self { json_schema: Some(schema), .. } => Some(json_schema(schema, cancel)?),
            Self { json_object: true, .. } => Some(("--json-object".into(), Shape::JsonObject)),
            Self { regex: Some(regex), .. } => Some(("--regex".into(), Shape::Regex(regex.clone()))),
            Self { grammar: Some(path), .. } => {
                let grammar = Shape::grammar(prompt::read_text(path, cancel)?);
                Some((format!("--grammar {}", path.display()), grammar))
            }
            _ => None,
        })
    }
}

/// Returns the value of --json-schema: a file, or the text itself.
fn json_schema(value: &str, cancel: &AtomicBool) -> anyhow::Result<(String, Shape)> {
    if value.trim_start().starts_with('{') {
        return Ok(("--json-schema".into(), Shape::JsonSchema(value.into())));
    }
    let text = prompt::read_text(Path::new(value), cancel)?;
    Ok((format!("--json-schema {value}"), Shape::JsonSchema(text)))
}

/// Returns the constraint in the file at `path`: a JSON schema or a grammar.
pub fn format_file(path: &Path, cancel: &AtomicBool) -> hymba::Result<Shape> {
    let text = prompt::read_text(path, cancel)?;
    let json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    Ok(if json || text.trim_start().starts_with('{') { Shape::JsonSchema(text) } else { Shape::grammar(text) })
}

/// Compiles `shape`, which came from `name`.
pub fn compile(
    name: &str,
    shape: &Shape,
    tokenizer: &Tokenizer,
    cancel: &AtomicBool,
) -> anyhow::Result<Arc<Constraint>> {
    let compiled = Vocabulary::new(tokenizer).and_then(|all| Constraint::new_until(&all, shape, cancel));
    compiled.map(Arc::new).map_err(|e| match e {
        Error::Constraint { .. } => Usage(format!("{name}: {e}")).into(),
        e => e.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn format_files_are_classified_by_extension_or_content() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            format_file(&path, &AtomicBool::new(false)).unwrap()
        };
        assert!(matches!(of("a.json", "true"), Shape::JsonSchema(_)));
        assert!(matches!(of("schema", " {}"), Shape::JsonSchema(_)));
        assert!(matches!(of("g", "root ::= \"a\""), Shape::Gbnf(_)));
        assert!(matches!(of("g.lark", "start: \"a::=\""), Shape::Lark(_)));
    }
}
