//! A checkpoint folder: its files must be consistent.

use std::path::Path;

use super::{card, config, read::text, tokenizer, weights};
use crate::{
    Error, Result,
    format::{Stored, exists, gguf::Metadata},
    model::{
        Config,
        tensors::{Spec, specs},
    },
};

/// A checked checkpoint folder: all tensors are present with the right shapes.
pub struct Folder {
    /// The sizes.
    pub config: Config,
    /// The metadata of the resulting GGUF file, except keys that depend on how tensors are stored.
    pub metadata: Metadata,
    /// The tensors. `blk.N.ssm_a` is still A_log, whose −exp is stored in GGUF.
    pub tensors: Vec<(Spec, Stored)>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Folder {
    /// Reads everything in the folder at `path` except the tensors' values.
    pub fn open(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        if !exists(&config_path)? {
            return Err(Error::format(
                path.display().to_string(),
                "has no config.json; name a Hugging Face folder or a GGUF file",
            ));
        }
        let raw = config::Raw::read(&config_path, &text(&config_path)?)?;
        let config_file = config_path.display().to_string();
        let config = raw.config(&config_file)?;
        let mut notes = Vec::new();
        let mut metadata = Metadata::default();
        card::describe(path, &mut metadata)?;
        config.to_metadata(&mut metadata);
        if let Some(original) = raw.orig_max_position_embeddings {
            metadata.set("hymba.rope.scaling.original_context_length", original);
        }
        // The same checks as when opening a GGUF file.
        let config = Config::from_metadata(&metadata, &config_file)?;
        card::sampling(path, &mut metadata, &mut notes);
        let ends = card::ends(path, config.vocab, &mut notes);
        raw.special_ids(&config_file, &ends, &mut metadata)?;
        tokenizer::import(path, &config, &mut metadata, &mut notes)?;
        let tensors = match_tensors(path, &raw, &config, &mut notes)?;
        Ok(Self { config, metadata, tensors, notes })
    }
}

/// Finds every tensor that the configuration requires, and rejects unexpected ones.
fn match_tensors(
    path: &Path,
    raw: &config::Raw,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Vec<(Spec, Stored)>> {
    let mut stored = weights::open(path)?;
    let bad = |problem: String| Error::format(path.display().to_string(), problem);
    let mut found = Vec::new();
    for spec in specs(config) {
        if raw.may_omit(&spec) {
            continue;
        }
        let Some(mut tensor) = stored.remove(&spec.official) else {
            if raw.may_lack(&spec, config) {
                continue;
            }
            return Err(bad(format!("lacks the tensor `{}`; download the checkpoint again", spec.official)));
        };
        // The convolution's weights have a middle dimension of 1 there.
        if let [rows, 1, cols] = tensor.dims[..] {
            tensor.dims = vec![rows, cols];
        }
        if tensor.dims != spec.shape {
            return Err(bad(format!(
                "has `{}` with shape {:?}, but config.json requires {:?}",
                spec.official, tensor.dims, spec.shape
            )));
        }
        found.push((spec, tensor));
    }
    let mut ignored: Vec<String> = Vec::new();
    let mut unknown: Vec<String> = Vec::new();
    for name in stored.into_keys() {
        // A tied head is the embedding even if the file has one; RoPE frequencies are computed.
        let harmless = name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq");
        if harmless { &mut ignored } else { &mut unknown }.push(name);
    }
    if let Some(name) = unknown.iter().min() {
        return Err(bad(format!(
            "has {} tensor(s) that do not match config.json, the first one `{name}`; is config.json the right one?",
            unknown.len()
        )));
    }
    ignored.sort();
    notes.extend(ignored.iter().map(|name| format!("`{name}` is not needed; ignored")));
    Ok(found)
}
