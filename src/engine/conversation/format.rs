//! What follows from a template, and what it said.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    text::{Markers, StopMatcher, Template, Tokenizer},
};

/// What follows from a template.
pub(super) struct Format {
    /// The strings that end a reply.
    pub stops: Vec<String>,
    /// What only the template may say.
    pub markers: Markers,
    /// White space that the template says between a prompt and the reply to it. The model may say it, or not: it stays so.
    pub indent: String,
}

impl Format {
    /// Returns what follows from `template`; `stops` end a reply beside its own. Fails if they are too many or too long, or if
    /// the template does.
    pub fn new(tokenizer: &Tokenizer, template: Option<&Template>, stops: &[String]) -> Result<Self> {
        let mut all = template.map(Template::stops).transpose()?.unwrap_or_default();
        all.extend_from_slice(stops);
        StopMatcher::new(&all)?;
        let markers = tokenizer.markers(&template.map(Template::markers).unwrap_or_default())?;
        let indent = template.map(Template::reply_indent).unwrap_or_default();
        template.map_or(Ok(()), Template::check_cancelled)?; // the markers are not all there then
        Ok(Self { stops: all, markers, indent })
    }
}

/// What a template said once, as a prompt: its length and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    pub bytes: usize,
    pub hash: String,
}

impl Said {
    pub fn new(text: &str) -> Self {
        Self { bytes: text.len(), hash: blake3::hash(text.as_bytes()).to_hex().to_string() }
    }

    /// Returns what no text begins with.
    pub fn something_else() -> Self {
        Self { bytes: 0, hash: String::new() }
    }

    /// Whether `text` begins with it.
    pub fn begins(&self, text: &str) -> bool {
        let start = text.as_bytes().get(..self.bytes);
        start.is_some_and(|start| *blake3::hash(start).to_hex() == *self.hash)
    }
}
