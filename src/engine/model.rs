//! A model: memory-mapped weights, configuration, metadata.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    thread,
};

use crate::{
    Error, Result,
    backend::Device,
    format::{
        Blob, Matrix,
        gguf::{Gguf, MAX_NEW_TOKENS, Metadata, Value},
    },
    forward::MetaPass,
    model::{Config, Plan, Weights, tensors::specs},
    sample::SamplingParams,
    state::MetaState,
    text::{Template, Tokenizer},
    threads,
};

/// An open model. Opening neither copies nor converts weights.
pub struct Model {
    gguf: Gguf,
    config: Config,
    plan: Plan,
    weights: Weights,
    stored_meta_state: Option<MetaState>,
    computed_meta_state: OnceLock<MetaState>,
    fingerprint: Arc<OnceLock<String>>,
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

    /// Returns the model in `gguf`.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let config = Config::from_metadata(&gguf.metadata, &gguf.file)?;
        let weights = Weights::from_gguf(&gguf, &config)?;
        let stored_meta_state = if config.meta_tokens > 0 { MetaState::stored(&gguf, &config)? } else { None };
        let (plan, computed_meta_state, fingerprint) = (Plan::new(&config), OnceLock::new(), Arc::default());
        Ok(Self { plan, weights, config, stored_meta_state, computed_meta_state, fingerprint, gguf })
    }

    /// Returns the model with matrices replaced: `change` receives each one with its tensor's name and returns its
    /// replacement, if any. The stored state after the meta tokens does not apply and is dropped.
    pub fn with_matrices(&self, mut change: impl FnMut(&str, &Matrix) -> Result<Option<Matrix>>) -> Result<Self> {
        let mut weights = self.weights.clone();
        let specs = specs(&self.config);
        for matrix in weights.matrices_mut() {
            if let Some(other) = change(&specs[matrix.id].name, matrix)? {
                *matrix = other;
            }
        }
        let (gguf, config, plan) = (self.gguf.clone(), self.config.clone(), self.plan.clone());
        let (stored_meta_state, computed_meta_state, fingerprint) = (None, OnceLock::new(), Arc::default());
        Ok(Self { plan, weights, config, stored_meta_state, computed_meta_state, fingerprint, gguf })
    }

    /// Returns the file's tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_metadata(self.metadata(), self.file())
    }

    /// [`Model::tokenizer`], interrupted by `cancel`, as is later tokenization of long texts.
    pub fn tokenizer_until(&self, cancel: &Arc<AtomicBool>) -> Result<Tokenizer> {
        Ok(Tokenizer::from_metadata_until(self.metadata(), self.file(), cancel)?.cancelled_by(cancel))
    }

    /// Returns the file's recommended sampling parameters, or the defaults.
    pub fn sampling(&self) -> Result<SamplingParams> {
        SamplingParams::from_metadata(self.metadata(), self.file())
    }

    /// [`Model::sampling`] with defaults in place of invalid recommendations, and a sentence for each.
    pub fn usable_sampling(&self) -> (SamplingParams, Vec<String>) {
        let (params, refused) = SamplingParams::usable(self.metadata());
        (params, refused.iter().map(|problem| format!("{}: {problem}; using the default", self.file())).collect())
    }

    /// Returns the file's recommended reply limit in tokens.
    pub fn reply_limit(&self) -> Result<Option<usize>> {
        match self.metadata().get(MAX_NEW_TOKENS) {
            None => Ok(None),
            Some(&Value::Uint(tokens @ 1..)) => Ok(usize::try_from(tokens).ok()),
            Some(_) => Err(Error::model(self.file(), format!("has a {MAX_NEW_TOKENS} that is not a positive number"))),
        }
    }

    /// Returns the file's chat template, if any.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<Template>> {
        let source = self.metadata().string("tokenizer.chat_template");
        source.map(|source| tokenizer.template(source, self.file())).transpose()
    }

    /// Returns the hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the layer plan: KV producers, sizes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Returns the file's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.gguf.metadata
    }

    /// Returns the file's name, for messages.
    pub fn file(&self) -> &str {
        &self.gguf.file
    }

    /// Returns the BLAKE3 hash of the file as opened, which identifies it in saved sessions. Computed on first use;
    /// fails if another program changed the file before that.
    pub fn fingerprint(&self) -> Result<&str> {
        self.fingerprint_until(&AtomicBool::new(false))
    }

    /// [`Model::fingerprint`], interrupted by `cancel`.
    pub fn fingerprint_until(&self, cancel: &AtomicBool) -> Result<&str> {
        fingerprint(&self.fingerprint, &self.gguf.bytes, cancel)
    }

    /// Starts computing the fingerprint on a separate thread, so that it is known even if the file changes later.
    pub fn start_fingerprint(&self) {
        let (known, bytes) = (self.fingerprint.clone(), self.gguf.bytes.clone());
        // A failure is reported when the fingerprint is needed.
        let compute = move || drop(fingerprint(&known, &bytes, &AtomicBool::new(false)).map(str::len));
        let _ = thread::Builder::new().spawn(compute);
    }

    /// Fails if another program changed the file since it was opened.
    pub fn check_file(&self) -> Result<()> {
        self.gguf.bytes.check()
    }

    /// Returns the whole mapped file.
    pub fn bytes(&self) -> &[u8] {
        &self.gguf.bytes
    }

    /// Returns the state after the meta tokens, if it is stored in the file or was computed by
    /// [`Model::read_meta_tokens`].
    pub fn stored_meta_state(&self) -> Option<&MetaState> {
        self.stored_meta_state.as_ref().or(self.computed_meta_state.get())
    }

    /// Computes the state after the meta tokens on the CPU, unless it is stored in the file; sessions then start from
    /// it. `cancel` interrupts that.
    pub fn read_meta_tokens(&self, threads: Option<NonZeroUsize>, cancel: &AtomicBool) -> Result<()> {
        if self.config.meta_tokens == 0 || self.stored_meta_state().is_some() {
            return Ok(());
        }
        let device = &mut Device::cpu_only(threads);
        let (config, weights, cancel) = (&self.config, &self.weights, Some(cancel));
        let state = MetaPass { backend: device, config, weights, cancel }.run(None).map_err(|e| match e {
            Error::NotFinite(_) => Error::format(self.file(), e.to_string()),
            e => e,
        })?;
        self.computed_meta_state.get_or_init(|| state);
        Ok(())
    }

    /// Returns the bytes of weights that a decode step reads: all layers and the output matrix.
    pub fn weight_bytes_per_token(&self) -> u64 {
        let layers = self.gguf.tensors.iter().filter(|t| t.name.starts_with("blk."));
        (layers.map(|t| t.data.len()).sum::<usize>() + self.weights.head().data.len()) as u64
    }
}

/// Returns the hash of `bytes`, cached in `known`.
fn fingerprint<'k>(known: &'k OnceLock<String>, bytes: &Blob, cancel: &AtomicBool) -> Result<&'k str> {
    /// Bytes hashed between checks of `cancel`: some ten milliseconds.
    const HASH_CHUNK: usize = 16 << 20;
    if let Some(known) = known.get() {
        return Ok(known);
    }
    let mut hasher = blake3::Hasher::new();
    for bytes in bytes.chunks(HASH_CHUNK) {
        Error::check_cancelled(cancel)?;
        threads::hash(&mut hasher, bytes);
    }
    bytes.check()?;
    Ok(known.get_or_init(|| hasher.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{
        engine::{Session, SessionOptions},
        format::DType,
        quant::{Options, TypePlan, convert},
    };

    static NO_CANCEL: AtomicBool = AtomicBool::new(false);
    static CANCEL: AtomicBool = AtomicBool::new(true);

    fn tiny(folder: &Path) -> std::path::PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-a");
        let options = Options { types: TypePlan::Uniform(DType::F32), ..Options::default() };
        convert(&from, &folder.join("tiny.gguf"), &options, &mut |_| {}, &NO_CANCEL).unwrap();
        folder.join("tiny.gguf")
    }

    #[test]
    fn a_fingerprint_identifies_the_file_as_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let (early, late) = (Model::open(&path).unwrap(), Model::open(&path).unwrap());
        assert!(matches!(early.fingerprint_until(&CANCEL), Err(Error::Cancelled)));
        let known = early.fingerprint().unwrap().to_owned();
        assert_eq!(known, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
        thread::sleep(Duration::from_millis(20)); // a tick of the file system's clock
        let mut other = fs::read(&path).unwrap();
        other[100] ^= 1;
        fs::write(&path, other).unwrap();
        assert_eq!(early.fingerprint().unwrap(), known);
        let message = late.fingerprint().unwrap_err().to_string();
        assert!(message.contains("tiny.gguf: was shortened or overwritten"), "{message}");
    }

    #[test]
    fn meta_state_is_the_same_computed_in_advance_or_by_a_session() {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::open(tiny(folder.path())).unwrap();
        assert!(model.config().meta_tokens > 0);
        let bare = || model.with_matrices(|_, _| Ok(None)).unwrap(); // without the stored state
        let logits = |model: &Model| {
            let mut session = Session::new(model, &SessionOptions::default()).unwrap();
            session.prefill(&[1, 2, 3], &NO_CANCEL).unwrap().to_vec()
        };
        let read = bare();
        assert!(matches!(read.read_meta_tokens(None, &CANCEL), Err(Error::Cancelled)));
        assert!(read.stored_meta_state().is_none());
        read.read_meta_tokens(None, &NO_CANCEL).unwrap();
        assert!(read.stored_meta_state().is_some());
        assert_eq!(logits(&read), logits(&bare()));
    }
}
