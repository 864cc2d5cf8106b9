//! What a folder says about its model: name, licence, and how it likes to be sampled.

use std::{fs, io::Read, path::Path};

use serde::Deserialize;

use super::read::json;
use crate::{
    Error, Result,
    format::{
        gguf::{ARCHITECTURE, Metadata, Value},
        open_file,
    },
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

#[derive(Deserialize)]
struct Generation {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// Adds `general.sampling.*`, where generation_config.json asks for sampling.
pub(super) fn sampling(folder: &Path, metadata: &mut Metadata) -> Result<()> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(());
    }
    let wish: Generation = json(&path)?;
    if !wish.do_sample.unwrap_or(wish.temperature.is_some()) {
        return Ok(());
    }
    let floats = [
        ("temp", wish.temperature),
        ("top_p", wish.top_p),
        ("min_p", wish.min_p),
        ("penalty_repeat", wish.repetition_penalty),
    ];
    for (key, value) in floats {
        if let Some(value) = value {
            if !(value.is_finite() && value >= 0.0) {
                let what = format!("has a value for {key} that makes no sense: {value}");
                return Err(Error::format(path.display().to_string(), what));
            }
            metadata.set(format!("general.sampling.{key}"), value);
        }
    }
    if let Some(top_k) = wish.top_k {
        metadata.set("general.sampling.top_k", Value::Int(top_k.into()));
    }
    Ok(())
}
