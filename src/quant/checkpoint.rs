//! The input of a conversion: a Hugging Face folder or a GGUF file.

use std::path::Path;

use super::meta_state;
use crate::{
    Error, Result,
    format::{
        Source, Stored,
        gguf::{Gguf, Metadata, Tensor},
    },
    import::Folder,
    model::{
        Config,
        tensors::{Spec, meta_state_specs, specs},
    },
};

/// A checkpoint to convert, checked except for its tensors' values.
pub(super) struct Checkpoint {
    pub(super) config: Config,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<(Spec, Stored)>,
    pub(super) notes: Vec<String>,
    /// Whether `ssm_a` still holds A_log.
    pub(super) a_is_log: bool,
}

impl Checkpoint {
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let Folder { config, metadata, tensors, notes } = Folder::open(path)?;
            return Ok(Self { config, metadata, tensors, notes, a_is_log: true });
        }
        let (source, blob) = Source::open(path)?;
        let Gguf { file, mut metadata, tensors: stored, .. } = Gguf::parse(&path.display().to_string(), blob)?;
        let bad = |problem: String| Error::format(&file, problem);
        let config = Config::from_metadata(&metadata, &file)?;
        metadata.remove(meta_state::KEY);
        let mut stored: std::collections::BTreeMap<_, _> = stored.into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut tensors = Vec::new();
        for spec in specs(&config) {
            let Some(tensor) = stored.remove(&spec.name) else {
                if spec.optional {
                    continue;
                }
                return Err(bad(format!("lacks the tensor `{}`; download or convert it again", spec.name)));
            };
            if tensor.dims != spec.shape {
                return Err(bad(format!(
                    "has `{}` with shape {:?}, but its metadata requires {:?}; convert it again",
                    spec.name, tensor.dims, spec.shape
                )));
            }
            let source = source.clone();
            let Tensor { offset, dims, dtype, packing, .. } = tensor;
            tensors.push((spec, Stored { source, offset, dims, dtype, packing }));
        }
        for (name, _) in meta_state_specs(&config) {
            stored.remove(&name);
        }
        match stored.into_keys().next() {
            Some(name) => Err(bad(format!("contains `{name}`, which is not a tensor of a Hymba model"))),
            None => Ok(Self { config, metadata, tensors, notes: Vec::new(), a_is_log: false }),
        }
    }
}
