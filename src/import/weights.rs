//! model.safetensors, or its shards and their index: the location of every tensor.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fs,
    path::{Component, Path},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::read::json;
use crate::{
    Error, Result, foreign,
    format::{DType, Source, Stored, exists, packed::Packing},
    limits,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Returns all tensors of the folder, by name.
pub(super) fn open(folder: &Path) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = BTreeMap::new();
    if exists(&folder.join(SINGLE))? {
        add_file(&folder.join(SINGLE), &mut tensors)?;
        return Ok(tensors);
    }
    let index_path = folder.join(INDEX);
    if !exists(&index_path)? {
        if let Some(shard) = find_shard(folder) {
            let problem = format!("has {shard}, but not the index of all shards, {INDEX}; download it too");
            return Err(Error::format(folder.display().to_string(), problem));
        }
        return Err(Error::format(
            folder.display().to_string(),
            format!("has neither {SINGLE} nor {INDEX}; other weight formats are not supported"),
        ));
    }
    let Index { weight_map } = json(&index_path)?;
    let bad = |problem: String| Error::format(index_path.display().to_string(), problem);
    let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut home = HashMap::new();
    for shard in shards {
        if !matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(bad(format!("names the shard `{shard}`, which is not a plain file name")));
        }
        let path = folder.join(shard);
        if !exists(&path)? {
            return Err(bad(format!("names the shard {shard}, which is missing; download it too")));
        }
        for name in add_file(&path, &mut tensors)? {
            home.insert(name, shard);
        }
    }
    for (name, shard) in &weight_map {
        if home.get(name) != Some(&shard.as_str()) {
            return Err(bad(format!("lists `{name}` in {shard}, which does not contain it; download both again")));
        }
    }
    match home.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
        Some((name, shard)) => Err(bad(format!("does not list `{name}`, which {shard} contains; download both again"))),
        None => Ok(tensors),
    }
}

/// Returns the name of a part of a model in `folder`, if there is one.
fn find_shard(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten().filter_map(|file| file.file_name().into_string().ok());
    names.filter(|name| name.starts_with("model-") && name.ends_with(".safetensors")).min()
}

/// Adds the tensors of one file, and returns their names.
fn add_file(path: &Path, tensors: &mut BTreeMap<String, Stored>) -> Result<Vec<String>> {
    let bad = |problem: String| Error::format(path.display().to_string(), problem);
    let (source, blob) = Source::open(path)?;
    if blob.starts_with(b"version ") {
        return Err(bad("is a Git LFS pointer; fetch the file itself, for example with `git lfs pull`".into()));
    }
    if blob.first_chunk().is_some_and(|&len| u64::from_le_bytes(len) > limits::SAFETENSORS_HEADER as u64) {
        return Err(bad("is not a safetensors file, or its header is damaged; download it again".into()));
    }
    // Checks that the tensors fill the file exactly and that their sizes match their shapes.
    let (header, parsed) = foreign::call(|| SafeTensors::read_metadata(&blob).map_err(|e| e.to_string()))
        .and_then(|read| read)
        .map_err(|e| bad(format!("is truncated or damaged ({e}); download it again")))?;
    let data_start = header as u64 + 8;
    let names = parsed.offset_keys();
    for name in &names {
        let Some(info) = parsed.info(name) else { continue };
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(bad(format!("stores `{name}` as unsupported {other:?}; supported: F32, F16 and BF16")));
            }
        };
        let stored = Stored {
            source: source.clone(),
            offset: data_start + info.data_offsets.0 as u64,
            dims: info.shape.clone(),
            dtype,
            packing: Packing::Plain,
        };
        match tensors.entry(name.clone()) {
            Entry::Vacant(slot) => slot.insert(stored),
            Entry::Occupied(_) => return Err(bad(format!("contains `{name}`, which another shard also contains"))),
        };
    }
    Ok(names)
}
