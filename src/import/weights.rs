//! model.safetensors, or its shards and their index: which tensor lies where.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    path::{Component, Path},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::read::json;
use crate::{
    Error, Result,
    format::{Blob, DType, Source, Stored, packed::Packing},
    limits,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// All tensors of the folder, by name.
pub(super) fn open(folder: &Path) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = BTreeMap::new();
    if folder.join(SINGLE).exists() {
        add_file(&folder.join(SINGLE), &mut tensors)?;
        return Ok(tensors);
    }
    let index_path = folder.join(INDEX);
    if !index_path.exists() {
        return Err(Error::format(
            folder.display().to_string(),
            format!("has neither {SINGLE} nor {INDEX}; weights in other formats can't be read"),
        ));
    }
    let Index { weight_map } = json(&index_path)?;
    let bad = |what: String| Error::format(index_path.display().to_string(), what);
    let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut home = HashMap::new();
    for shard in shards {
        if !matches!(Path::new(shard).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            return Err(bad(format!("names the shard `{shard}`, which is no plain file name")));
        }
        let path = folder.join(shard);
        if !path.exists() {
            return Err(bad(format!("names the shard {shard}, which is missing; download it too")));
        }
        for name in add_file(&path, &mut tensors)? {
            home.insert(name, shard);
        }
    }
    for (name, shard) in &weight_map {
        if home.get(name) != Some(&shard.as_str()) {
            return Err(bad(format!("says that {shard} holds `{name}`, but it does not; download both again")));
        }
    }
    match home.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
        Some((name, shard)) => Err(bad(format!("does not list `{name}`, which {shard} holds; download both again"))),
        None => Ok(tensors),
    }
}

/// Adds the tensors of one file, and returns their names.
fn add_file(path: &Path, tensors: &mut BTreeMap<String, Stored>) -> Result<Vec<String>> {
    let bad = |what: String| Error::format(path.display().to_string(), what);
    let blob = Blob::map(path)?;
    if blob.starts_with(b"version ") {
        return Err(bad("is a Git LFS pointer; fetch the file itself, for example with `git lfs pull`".into()));
    }
    if blob.first_chunk().is_some_and(|&len| u64::from_le_bytes(len) > limits::SAFETENSORS_HEADER as u64) {
        return Err(bad("is no safetensors file, or its header is damaged; download it again".into()));
    }
    // Checks that the tensors fill the file exactly and that their sizes match their shapes.
    let (header, parsed) = SafeTensors::read_metadata(&blob)
        .map_err(|e| bad(format!("is truncated or damaged ({e}); download it again")))?;
    let data_start = header as u64 + 8;
    let source = Source::open(path)?;
    let names = parsed.offset_keys();
    for name in &names {
        let Some(info) = parsed.info(name) else { continue };
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(bad(format!("stores `{name}` as {other:?}; F32, F16 and BF16 can be read"))),
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
            Entry::Occupied(_) => return Err(bad(format!("holds `{name}`, which another shard holds too"))),
        };
    }
    Ok(names)
}
