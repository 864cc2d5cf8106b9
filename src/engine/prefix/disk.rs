//! Prefix states in a folder, one file per node, so that they survive a restart.

use std::{
    fs::{self, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::node::Step;
use crate::{
    Error, Result,
    engine::{Batch, Model},
    format::CacheType,
    forward::Phase,
    state::{Payload, Recurrent, Rows, read_session},
};

/// The version of the file layout. Files of other versions are ignored.
pub(super) const VERSION: u32 = 1;
const EXTENSION: &str = "prefix";
/// The file that is locked while a process uses the folder.
const LOCK: &str = "lock";

/// The folder, and the model and cache type of its files.
pub struct Folder {
    path: PathBuf,
    /// The model file's fingerprint.
    pub(super) model: String,
    pub(super) cache: CacheType,
    _lock: Option<fs::File>,
}

/// The header of a file; its payload is rows, conv and SSM state, logits.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub prefix_version: u32,
    pub model: String,
    pub cache: String,
    /// The owner's key.
    pub owner: String,
    /// The file with the preceding tokens; empty for the first one.
    pub parent: String,
    pub start: usize,
    pub ids: Vec<u32>,
    /// The tokens among these that were decoded: start and length of each range.
    pub decoded: Vec<(usize, usize)>,
    /// The first token of each layer's rows.
    pub firsts: Vec<Option<usize>>,
    pub has_state: bool,
    pub logits: usize,
}

impl Header {
    pub(super) fn steps(&self) -> Option<Vec<Step>> {
        let mut steps: Vec<Step> = self.ids.iter().map(|&id| (id, Phase::Prefill)).collect();
        for &(first, count) in &self.decoded {
            steps.get_mut(first..first.checked_add(count)?)?.iter_mut().for_each(|step| step.1 = Phase::Decode);
        }
        Some(steps)
    }
}

/// A file whose payload has not been read yet.
pub(super) struct File {
    pub path: PathBuf,
    pub name: String,
    pub header: Header,
    pub rows: usize,
    pub payload: Payload,
    /// When it was written.
    pub at: std::time::SystemTime,
}

impl Folder {
    /// Opens the folder and creates it if it does not exist. Only one process can use it at a time: each removes the files
    /// of states that it has dropped.
    pub fn open(path: &Path, model: &Model, cache: CacheType) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path).map_err(|e| Error::io("cannot create directory", path, e))?;
        Ok(Self { path: path.into(), model: model.fingerprint()?.into(), cache, _lock: lock(path)? })
    }

    /// Returns the name of the file for the state after `steps`.
    pub(super) fn name(&self, owner: &str, steps: &[Step]) -> String {
        if steps.is_empty() {
            return String::new();
        }
        let mut hasher = blake3::Hasher::new();
        for text in [&self.model, self.cache.name(), owner] {
            hasher.update(text.as_bytes()).update(&[0]);
        }
        for (id, phase) in steps {
            hasher.update(&id.to_le_bytes()).update(&[u8::from(*phase == Phase::Decode)]);
        }
        hasher.finalize().to_hex()[..40].to_owned()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name).with_extension(EXTENSION)
    }

    /// Removes the file for the state after `steps`, if it exists.
    pub(super) fn remove(&self, owner: &str, steps: &[Step]) {
        if !steps.is_empty() {
            let _ = fs::remove_file(self.file(&self.name(owner, steps)));
        }
    }

    /// Returns the files for this model, cache type and version, shortest prefix first. Other files are ignored,
    /// damaged ones removed.
    pub(super) fn files(&self, batch: &Batch<'_>) -> Result<Vec<File>> {
        let failed = |e| Error::io("cannot read directory", &self.path, e);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let config = batch.model().config();
            let check = |header: serde_json::Value| {
                // Files without our header are neither read nor removed.
                let header: Header = serde_json::from_value(header).map_err(|_| Error::Cancelled)?;
                let tokens = header.start..header.start.saturating_add(header.ids.len());
                let rows = Rows::written(config, self.cache, &tokens, &header.firsts);
                let state = if header.has_state { Recurrent::bytes(config) } else { 0 };
                let logits = size_of::<f32>() * header.logits;
                let is_ours = header.prefix_version == VERSION
                    && header.model == self.model
                    && header.cache == self.cache.name()
                    && [0, config.vocab].contains(&header.logits)
                    && header.ids.iter().all(|&id| (id as usize) < config.vocab);
                let rows = rows.filter(|_| is_ours).ok_or(Error::Cancelled)?;
                Ok(((header, rows), rows + state + logits))
            };
            let at = fs::metadata(&path).and_then(|file| file.modified()).unwrap_or(std::time::UNIX_EPOCH);
            match read_session(&path, check) {
                Ok(((header, rows), payload)) => {
                    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    files.push(File { path, name, header, rows, payload, at });
                }
                Err(Error::Format { .. }) => drop(fs::remove_file(&path)),
                Err(_) => {}
            }
        }
        files.sort_by_key(|file| (file.header.start, file.at));
        Ok(files)
    }
}

/// Locks the folder at `path` until the file is closed. A folder that cannot be written needs no lock, and without file system
/// support there is none.
fn lock(path: &Path) -> Result<Option<fs::File>> {
    let mut options = fs::File::options();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let Ok(file) = options.open(path.join(LOCK)) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let busy =
                io::Error::new(ErrorKind::ResourceBusy, "another process uses it; give each a folder of its own");
            Err(Error::io("cannot lock", path, busy))
        }
    }
}
