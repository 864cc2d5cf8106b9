//! What a folder says about its model: name, licence, and how it likes to be sampled.

use std::{fs, io::Read, path::Path};

use serde::Deserialize;

use super::read::{json, optional};
use crate::{
    Error, Result,
    format::{
        gguf::{ARCHITECTURE, Metadata, Value},
        open_file,
    },
    sample::{SamplingParams, Setting},
};

/// Adds `general.*`.
pub(super) fn describe(folder: &Path, metadata: &mut Metadata) -> Result<()> {
    let folder = fs::canonicalize(folder).map_err(|e| Error::io("cannot open", folder, e))?;
    metadata.set("general.architecture", ARCHITECTURE);
    if let Some(name) = folder.file_name() {
        metadata.set("general.name", name.to_string_lossy().into_owned());
    }
    if let Some(license) = ["README.md", "MODEL_CARD.md"].iter().find_map(|card| license(&folder.join(card))) {
        metadata.set("general.license", license);
    }
    Ok(())
}

/// The licence that a model card's front matter names.
fn license(card: &Path) -> Option<String> {
    let mut text = String::new();
    open_file(card).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let value = |key: &str| {
        let value = front.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    match value("license")? {
        other if other == "other" => value("license_name").or(Some(other)),
        named => Some(named),
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
}

/// Adds `general.sampling.*`, where generation_config.json asks for sampling. What can't be used of it goes to `notes`.
pub(super) fn sampling(folder: &Path, metadata: &mut Metadata, notes: &mut Vec<String>) {
    let path = folder.join("generation_config.json");
    let Some(wish) = optional(&path, notes, json::<Generation>) else { return };
    if !wish.do_sample.unwrap_or(wish.temperature.is_some()) {
        return;
    }
    let wishes = [
        (Setting::Temperature, "temperature", wish.temperature),
        (Setting::TopK, "top_k", wish.top_k),
        (Setting::TopP, "top_p", wish.top_p),
        (Setting::MinP, "min_p", wish.min_p),
        (Setting::RepeatPenalty, "repetition_penalty", wish.repetition_penalty),
    ];
    for (setting, name, value) in wishes {
        let Some(value) = value else { continue };
        let number = value.as_f64().ok_or("is no number");
        match number.and_then(|number| SamplingParams::default().set(setting, number).map(|()| number)) {
            Ok(number) if setting == Setting::TopK => metadata.set(setting.key(), Value::Int(number as i64)),
            Ok(number) => metadata.set(setting.key(), number as f32),
            Err(why) => notes.push(format!("{}: {name} {value} {why}; it is left out", path.display())),
        }
    }
}
