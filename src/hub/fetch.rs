//! Downloads a repository's missing files to the cache.

use std::fs;

use super::{
    Cache, Client, Info, Lock, RemoteFile, Snapshot,
    download::{Download, Event},
    info::Remote,
    part::Part,
};
use crate::{Error, Result};

/// A download of a repository's files.
pub struct Fetch<'a> {
    client: &'a Client,
    cache: Cache,
    info: &'a Info,
}

/// The files to download.
pub struct Plan {
    files: Vec<(Remote, u64)>,
}

impl Plan {
    /// Returns the bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(remote, _)| remote.size).sum()
    }

    /// Bytes still missing.
    pub fn missing(&self) -> u64 {
        self.files.iter().map(|(remote, present)| remote.size - present).sum()
    }

    /// Name, size and present bytes of each file.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.files.iter().map(|(remote, present)| (&*remote.path, remote.size, *present))
    }
}

impl<'a> Fetch<'a> {
    /// Returns a download from the repository of `info`.
    pub fn new(client: &'a Client, info: &'a Info) -> Self {
        Self { cache: Cache::new(client.settings()), client, info }
    }

    /// Requests the files' hashes and sizes, and checks which are present. Writes nothing.
    pub fn plan(&self, files: &[&RemoteFile]) -> Result<Plan> {
        let plan = |file: &&RemoteFile| {
            let remote = self.client.remote(self.info, file)?;
            let present = if self.is_present(&remote) {
                remote.size
            } else {
                Part::peek(&self.cache.blob(&self.info.repo, remote.hash.hex()), remote.size)
            };
            Ok((remote, present))
        };
        Ok(Plan { files: files.iter().map(plan).collect::<Result<_>>()? })
    }

    /// Fetches a short text file of the plan without storing it, and verifies it.
    pub fn text(&self, plan: &Plan, path: &str) -> Result<String> {
        let text = self.client.file_text(self.info, path)?;
        match plan.files.iter().find(|(remote, _)| remote.path == path) {
            Some((Remote { hash, .. }, _)) if !hash.matches_bytes(text.as_bytes()) => {
                Err(Error::Request(format!("{path}: the download does not match the hub's hash ({hash})")))
            }
            _ => Ok(text),
        }
    }

    /// Whether a file is present, as a blob or, without links, in the snapshot. Its name is its verified hash; its size
    /// is checked here.
    fn is_present(&self, remote: &Remote) -> bool {
        let blob = self.cache.blob(&self.info.repo, remote.hash.hex());
        let pointer = self.cache.snapshot(&self.info.repo, &self.info.commit).folder.join(&remote.path);
        [blob, pointer].iter().any(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == remote.size))
    }

    /// Downloads the missing files, records `revision`, and returns its snapshot.
    pub fn run(&self, plan: &Plan, revision: &str, progress: &mut dyn FnMut(Event)) -> Result<Snapshot> {
        let (repo, cancel) = (&self.info.repo, self.client.cancel());
        let snapshot = self.cache.snapshot(repo, &self.info.commit);
        self.cache.prepare(repo, revision, &snapshot)?;
        for (remote, _) in &plan.files {
            let blob = self.cache.blob(repo, remote.hash.hex());
            let waits = &mut || progress(Event::Waiting { path: &remote.path });
            let _lock = Lock::take(&self.cache.lock(repo, remote.hash.hex()), waits, cancel)?;
            if !self.is_present(remote) {
                Download { client: self.client, info: self.info, remote }.run(&blob, progress)?;
            }
            if blob.exists() {
                self.cache.link(&blob, &snapshot, &remote.path)?;
            }
        }
        Error::check_cancelled(cancel)?;
        self.cache.set_reference(repo, revision, &self.info.commit)?;
        Ok(snapshot)
    }
}
