//! Model metadata in a folder: name, license, recommended sampling.

use std::{fs, io::Read, path::Path};

use serde::Deserialize;

use super::{
    cache,
    read::{json, optional},
};
use crate::{
    Error, Result,
    format::{
        gguf::{ARCHITECTURE, MAX_NEW_TOKENS, Metadata, Value},
        open_file,
    },
    sample::{SamplingParams, Setting},
};

/// Adds `general.*`.
pub(super) fn describe(folder: &Path, metadata: &mut Metadata) -> Result<()> {
    let folder = fs::canonicalize(folder).map_err(|e| Error::io("cannot open", folder, e))?;
    let card = ["README.md", "MODEL_CARD.md"].iter().find_map(|card| Card::read(&folder.join(card)));
    metadata.set("general.architecture", ARCHITECTURE);
    let repository = cache::repository(&folder);
    let organization = repository.as_ref().and_then(|repository| repository.organization.clone());
    let named = repository.map(|repository| repository.name).or_else(|| card.as_ref()?.value("model_name"));
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let named = named.or(folder.filter(|name| !cache::is_hash(name)));
    if let Some(name) = named.or_else(|| card.as_ref()?.heading.clone()) {
        metadata.set("general.name", name);
    }
    if let Some(organization) = organization {
        metadata.set("general.organization", organization);
    }
    if let Some(license) = card.as_ref().and_then(Card::license) {
        metadata.set("general.license", license);
    }
    Ok(())
}

/// A model card.
struct Card {
    /// The lines of its front matter.
    front_matter: Vec<String>,
    /// The first heading of its text.
    heading: Option<String>,
}

impl Card {
    /// Reads the beginning of a card; `None` if there is none.
    fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        open_file(path).ok()?.take(64 << 10).read_to_end(&mut bytes).ok()?;
        // The text may be truncated within a character.
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_end).peekable();
        let mut front_matter = Vec::new();
        if lines.next_if_eq(&"---").is_some() {
            front_matter.extend(lines.by_ref().take_while(|&line| line != "---").map(str::to_owned));
        }
        let heading = lines.find_map(|line| line.strip_prefix("# ")).map(|heading| heading.trim().to_owned());
        let heading = heading.filter(|heading| !heading.is_empty());
        Some(Self { front_matter, heading })
    }

    /// Returns the value of a key of the front matter; the first item of a list.
    fn value(&self, key: &str) -> Option<String> {
        let at = self
            .front_matter
            .iter()
            .position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
        let same_line = self.front_matter[at][key.len() + 1..].trim();
        let item = || self.front_matter.get(at + 1)?.trim_start().strip_prefix("- ");
        let value = if same_line.is_empty() { item()? } else { same_line };
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Returns the license, by its own name if Hugging Face has no identifier for it.
    fn license(&self) -> Option<String> {
        match self.value("license")? {
            other if other == "other" => self.value("license_name").or(Some(other)),
            named => Some(named),
        }
    }
}

/// generation_config.json, with values of any kind.
#[derive(Deserialize)]
struct Generation {
    do_sample: Option<bool>,
    temperature: Option<serde_json::Value>,
    top_k: Option<serde_json::Value>,
    top_p: Option<serde_json::Value>,
    min_p: Option<serde_json::Value>,
    repetition_penalty: Option<serde_json::Value>,
    max_new_tokens: Option<serde_json::Value>,
}

/// Adds `general.sampling.*`: the reply limit and, if generation_config.json enables sampling, the parameters. Invalid
/// values are added to `notes`.
pub(super) fn sampling(folder: &Path, metadata: &mut Metadata, notes: &mut Vec<String>) {
    let path = folder.join("generation_config.json");
    let Some(config) = optional(&path, notes, json::<Generation>) else { return };
    if let Some(value) = config.max_new_tokens.filter(|value| !value.is_null()) {
        match value.as_u64().and_then(|tokens| u32::try_from(tokens).ok()).filter(|&tokens| tokens > 0) {
            Some(tokens) => metadata.set(MAX_NEW_TOKENS, tokens),
            None => notes.push(format!("{}: ignored max_new_tokens {value}", path.display())),
        }
    }
    if !config.do_sample.unwrap_or(config.temperature.is_some()) {
        return;
    }
    let recommendations = [
        (Setting::Temperature, "temperature", config.temperature),
        (Setting::TopK, "top_k", config.top_k),
        (Setting::TopP, "top_p", config.top_p),
        (Setting::MinP, "min_p", config.min_p),
        (Setting::RepeatPenalty, "repetition_penalty", config.repetition_penalty),
    ];
    for (setting, name, value) in recommendations {
        let Some(value) = value else { continue };
        let number = value.as_f64().ok_or("is not a number");
        match number.and_then(|number| SamplingParams::default().set(setting, number).map(|()| number)) {
            Ok(number) if setting == Setting::TopK => metadata.set(setting.key(), Value::Int(number as i64)),
            Ok(number) => metadata.set(setting.key(), number as f32),
            Err(reason) => notes.push(format!("{}: {name} {value} {reason}; ignored", path.display())),
        }
    }
}

/// Returns the end-of-text tokens of generation_config.json, which in Hugging Face's `generate` take precedence over
/// config.json; none if the file is absent or invalid.
pub(super) fn ends(folder: &Path, vocab: usize, notes: &mut Vec<String>) -> Vec<u64> {
    let path = folder.join("generation_config.json");
    let config: serde_json::Value = json(&path).unwrap_or_default();
    let ids = match &config["eos_token_id"] {
        serde_json::Value::Array(ids) => ids,
        one => std::slice::from_ref(one),
    };
    let (mut ends, mut unknown) = (Vec::new(), Vec::new());
    for id in ids.iter().filter(|id| !id.is_null() && id.as_i64() != Some(-1)) {
        match id.as_u64().filter(|&id| id < vocab as u64) {
            Some(id) => ends.push(id),
            None => unknown.push(id),
        }
    }
    if let Some(other) = unknown.first() {
        let path = path.display();
        notes.push(format!("{path} has the eos token id {other}, which is not in the vocabulary; ignored"));
    }
    ends
}
