//! Renders chat templates: reads lines of JSON, `{"template": ..., "variables": {...}}`, and writes a line of JSON for each,
//! `{"text": ...}` or `{"error": ...}`.

use std::io::{BufRead, Write, stdin, stdout};

use hymba::Template;
use serde_json::{Value, json};

fn main() -> std::io::Result<()> {
    for line in stdin().lock().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        let template = Template::new(case["template"].as_str().unwrap_or_default(), "template", "", "");
        let variables = case["variables"].as_object().cloned().unwrap_or_default();
        let rendered = template.and_then(|template| template.render_with(&variables));
        let answer = match rendered {
            Ok(text) => json!({ "text": text }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writeln!(stdout(), "{answer}")?;
    }
    Ok(())
}
