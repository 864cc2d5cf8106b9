//! Properties of a chat template, and fingerprints of rendered prompts.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    text::{Markers, StopMatcher, Template, Tokenizer},
};

/// Properties of a chat template.
pub(super) struct Format {
    /// The strings that end a reply.
    pub stops: Vec<String>,
    /// Markers that only the template may produce.
    pub markers: Markers,
    /// White space that the template inserts between a prompt and its reply. The model may generate it or not; either
    /// is kept.
    pub indent: String,
}

impl Format {
    /// Derives the properties of `template`; `stops` are additional stop strings. Fails if there are too many or too
    /// long ones, or if the template fails.
    pub fn new(tokenizer: &Tokenizer, template: Option<&Template>, stops: &[String]) -> Result<Self> {
        let mut all = template.map(Template::stops).transpose()?.unwrap_or_default();
        all.extend_from_slice(stops);
        StopMatcher::new(&all)?;
        let markers = tokenizer.markers(&template.map(Template::markers).unwrap_or_default())?;
        let indent = template.map(Template::reply_indent).unwrap_or_default();
        template.map_or(Ok(()), Template::check_cancelled)?; // after cancellation, the markers are incomplete
        Ok(Self { stops: all, markers, indent })
    }
}

/// The fingerprint of a rendered prompt: its length and hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    pub bytes: usize,
    pub hash: String,
}

impl Fingerprint {
    pub fn new(text: &str) -> Self {
        Self { bytes: text.len(), hash: blake3::hash(text.as_bytes()).to_hex().to_string() }
    }

    /// Returns a fingerprint that no text matches.
    pub fn unmatched() -> Self {
        Self { bytes: 0, hash: String::new() }
    }

    /// Whether `text` starts with the prompt.
    pub fn is_prefix_of(&self, text: &str) -> bool {
        let start = text.as_bytes().get(..self.bytes);
        start.is_some_and(|start| *blake3::hash(start).to_hex() == *self.hash)
    }
}
