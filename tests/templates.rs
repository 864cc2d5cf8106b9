//! Chat templates render as in `transformers`, whose output `scripts/check-templates` records.

use std::{collections::BTreeMap, fs, path::Path};

use hymba::Template;
use serde::Deserialize;
use serde_json::{Map, Value};

type Variables = Map<String, Value>;

#[derive(Deserialize)]
struct Inputs {
    conversations: BTreeMap<String, Variables>,
    variables: Variables,
}

#[derive(Deserialize)]
struct Expected {
    constructs: Vec<Answer>,
    models: BTreeMap<String, BTreeMap<String, Answer>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Text(String),
    /// The message, if the template raised it.
    Failed {
        error: Option<String>,
    },
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_str(&fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

/// Returns how a template's output differs from `expected`.
fn difference(source: &str, variables: &Variables, expected: &Answer) -> Option<String> {
    let rendered = Template::new(source, "t", "<s>", "</s>").and_then(|template| template.render_with(variables));
    match (rendered, expected) {
        (Ok(text), Answer::Text(wanted)) if text == *wanted => None,
        (Err(_), Answer::Failed { error: None }) => None,
        (Err(e), Answer::Failed { error: Some(raised) }) if e.to_string().ends_with(&format!(": {raised}")) => None,
        (Ok(text), Answer::Text(wanted)) => Some(format!("wanted {wanted:?}\n     got {text:?}")),
        (Ok(text), Answer::Failed { error }) => Some(format!("did not fail ({error:?}): {text:?}")),
        (Err(e), _) => Some(format!("failed: {e}")),
    }
}

#[test]
fn constructs_render_as_in_transformers() {
    let (inputs, expected): (Inputs, Expected) = (read("inputs.json"), read("expected.json"));
    let constructs: Vec<String> = read("constructs.json");
    assert!(constructs.len() == expected.constructs.len() && constructs.len() > 150);
    let differences: Vec<_> = constructs
        .iter()
        .zip(&expected.constructs)
        .filter_map(|(source, answer)| Some(format!("{source}\n  {}", difference(source, &inputs.variables, answer)?)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn model_templates_render_as_in_transformers() {
    let (inputs, expected): (Inputs, Expected) = (read("inputs.json"), read("expected.json"));
    assert!(expected.models.len() > 12);
    for (model, answers) in &expected.models {
        let source = fs::read_to_string(folder().join("models").join(model).with_extension("jinja")).unwrap();
        for (name, variables) in &inputs.conversations {
            if let Some(difference) = difference(&source, variables, &answers[name]) {
                panic!("{model}, {name}: {difference}");
            }
        }
    }
}
