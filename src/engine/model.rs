//! A model: weights on the memory map, sizes, metadata.

use std::{path::Path, sync::OnceLock};

use crate::{
    Result,
    format::{
        Blob, Matrix,
        gguf::{Gguf, Metadata},
    },
    model::{Config, Plan, Weights, tensors::specs},
    sample::SamplingParams,
    state::MetaState,
    text::{Template, Tokenizer},
    threads,
};

/// An open model. Opening copies and converts nothing.
pub struct Model {
    gguf: Gguf,
    config: Config,
    plan: Plan,
    weights: Weights,
    stored_meta_state: Option<MetaState>,
    fingerprint: OnceLock<String>,
}

impl Model {
    /// Opens the GGUF file at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_gguf(Gguf::open(path.as_ref())?)
    }

    /// Opens a GGUF file that is part of the program; `name` is for messages.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::from_gguf(Gguf::parse(name, Blob::from_static(bytes))?)
    }

    /// The model that `gguf` holds.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let config = Config::from_metadata(&gguf.metadata, &gguf.file)?;
        let weights = Weights::from_gguf(&gguf, &config)?;
        let stored_meta_state = if config.meta_tokens > 0 { MetaState::stored(&gguf, &config)? } else { None };
        let fingerprint = OnceLock::new();
        Ok(Self { plan: Plan::new(&config), weights, config, stored_meta_state, fingerprint, gguf })
    }

    /// The same model with other matrices: `change` gets each, with its tensor's name, and tells what takes its place, if
    /// anything does. A state after the meta tokens that the file holds is not this model's, and is left out.
    pub fn with_matrices(&self, mut change: impl FnMut(&str, &Matrix) -> Result<Option<Matrix>>) -> Result<Self> {
        let mut weights = self.weights.clone();
        let specs = specs(&self.config);
        for matrix in weights.matrices_mut() {
            if let Some(other) = change(&specs[matrix.id].name, matrix)? {
                *matrix = other;
            }
        }
        let (gguf, config, fingerprint) = (self.gguf.clone(), self.config.clone(), OnceLock::new());
        Ok(Self { plan: Plan::new(&config), weights, config, stored_meta_state: None, fingerprint, gguf })
    }

    /// Returns the tokenizer that the file holds.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_metadata(self.metadata(), self.file())
    }

    /// Returns the sampling that the file recommends, or else the defaults.
    pub fn sampling(&self) -> Result<SamplingParams> {
        SamplingParams::from_metadata(self.metadata(), self.file())
    }

    /// Returns the chat template that the file holds, if it holds one.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<Template>> {
        let source = self.metadata().string("tokenizer.chat_template");
        source.map(|source| tokenizer.template(source, self.file())).transpose()
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What each layer keeps, and how much room it takes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The file's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.gguf.metadata
    }

    /// The file's name, for messages.
    pub fn file(&self) -> &str {
        &self.gguf.file
    }

    /// The BLAKE3 hash of the whole file, which a saved session belongs to. Computed when it is first asked for.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            threads::hash(&mut hasher, &self.gguf.bytes);
            hasher.finalize().to_hex().to_string()
        })
    }

    /// An error if another program changed the file since it was opened.
    pub fn check_file(&self) -> Result<()> {
        self.gguf.bytes.check()
    }

    /// The whole file, as it is mapped.
    pub fn bytes(&self) -> &[u8] {
        &self.gguf.bytes
    }

    /// The state after the meta tokens, if the file holds it.
    pub fn stored_meta_state(&self) -> Option<&MetaState> {
        self.stored_meta_state.as_ref()
    }

    /// Bytes of weights that a decode step reads: all of the layers, and the matrix that makes logits.
    pub fn weight_bytes_per_token(&self) -> u64 {
        let layers = self.gguf.tensors.iter().filter(|t| t.name.starts_with("blk."));
        (layers.map(|t| t.data.len()).sum::<usize>() + self.weights.head().data.len()) as u64
    }
}
