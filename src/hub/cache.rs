//! The cache of Hugging Face's tools: `models--OWNER--NAME/{blobs,refs,snapshots}`. A file's bytes are a blob, named by
//! their hash; a snapshot is a folder of links to them; a ref holds the commit of a branch or tag.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Repo, Settings, info::is_commit};
use crate::{
    Error, Result,
    format::{Privacy, write_atomically},
};

/// A cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    links: bool,
}

/// The local files of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: String,
    /// The folder that holds the files.
    pub folder: PathBuf,
}

impl Cache {
    /// Returns the cache of the settings.
    pub fn new(settings: &Settings) -> Self {
        Self { root: settings.cache.clone(), links: settings.links }
    }

    /// Returns the folder of all repositories.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(repo.folder())
    }

    /// Returns the path of the blob named `hash`.
    pub(super) fn blob(&self, repo: &Repo, hash: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(hash)
    }

    /// Returns the path of the lock for writing a blob.
    pub(super) fn lock(&self, repo: &Repo, hash: &str) -> PathBuf {
        self.root.join(".locks").join(repo.folder()).join(format!("{hash}.lock"))
    }

    /// Returns the snapshot of a commit, whether or not it exists.
    pub(super) fn snapshot(&self, repo: &Repo, commit: &str) -> Snapshot {
        Snapshot { commit: commit.into(), folder: self.folder(repo).join("snapshots").join(commit) }
    }

    /// Returns the last known snapshot of `revision`, if any.
    pub fn find(&self, repo: &Repo, revision: &str) -> Option<Snapshot> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let named = fs::read_to_string(self.reference(repo, revision).ok()?).ok()?;
            Some(named.trim().to_owned()).filter(|commit| is_commit(commit))?
        };
        let snapshot = self.snapshot(repo, &commit);
        snapshot.folder.is_dir().then_some(snapshot)
    }

    fn reference(&self, repo: &Repo, revision: &str) -> Result<PathBuf> {
        let is_name = |part: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(inner)
        };
        if !revision.split('/').all(is_name) {
            return Err(Error::Request(format!("`{revision}` is not a name of a branch, tag or commit")));
        }
        Ok(self.folder(repo).join("refs").join(revision))
    }

    /// Creates the folders of a repository.
    pub(super) fn prepare(&self, repo: &Repo, revision: &str, snapshot: &Snapshot) -> Result<()> {
        self.reference(repo, revision)?;
        for folder in [&self.folder(repo).join("blobs"), &snapshot.folder] {
            fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
        }
        // Backups skip folders with this file; failing to create it is harmless.
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = fs::write(tag, "Signature: 8a477f597d28d172789f06886806bc55\n");
        }
        Ok(())
    }

    /// Records that `revision` is now `commit`.
    pub(super) fn set_reference(&self, repo: &Repo, revision: &str, commit: &str) -> Result<()> {
        let path = self.reference(repo, revision)?;
        if revision == commit || fs::read_to_string(&path).is_ok_and(|recorded| recorded == commit) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
        }
        write_atomically(&path, true, Privacy::Shared, |file| file.write_all(commit.as_bytes()))
    }

    /// Adds the blob to the snapshot as `name`: as a link, or without link support as the file itself.
    pub(super) fn link(&self, blob: &Path, snapshot: &Snapshot, name: &str) -> Result<()> {
        let pointer = snapshot.folder.join(name);
        if same_size(&pointer, blob) {
            return Ok(());
        }
        let failed = |e| Error::io("cannot write", &pointer, e);
        match fs::remove_file(&pointer) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => (),
        }
        let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
        match self.links.then(|| symlink(&target, &pointer)) {
            Some(Ok(())) => Ok(()),
            // As Python's client does; it looks for blobs in the snapshot then.
            _ => fs::rename(blob, &pointer).map_err(failed),
        }
    }

    /// Removes the snapshot: its links, refs, and blobs that no other snapshot uses.
    pub fn remove(&self, repo: &Repo, snapshot: &Snapshot) -> Result<()> {
        let folder = self.folder(repo);
        let blobs_of = |snapshot: &Path| -> HashSet<PathBuf> {
            let files = fs::read_dir(snapshot).into_iter().flatten().flatten();
            files.filter_map(|file| fs::canonicalize(file.path()).ok()).collect()
        };
        let other_snapshots =
            fs::read_dir(folder.join("snapshots")).into_iter().flatten().flatten().map(|other| other.path());
        let other_snapshots: Vec<PathBuf> = other_snapshots.filter(|other| *other != snapshot.folder).collect();
        let failed = |path: &Path, e| Error::io("cannot remove", path, e);
        if other_snapshots.is_empty() {
            return fs::remove_dir_all(&folder).map_err(|e| failed(&folder, e));
        }
        let needed: HashSet<PathBuf> = other_snapshots.iter().flat_map(|other| blobs_of(other)).collect();
        let blobs = fs::canonicalize(folder.join("blobs")).unwrap_or_default();
        for blob in blobs_of(&snapshot.folder).difference(&needed).filter(|blob| blob.starts_with(&blobs)) {
            fs::remove_file(blob).map_err(|e| failed(blob, e))?;
        }
        for reference in fs::read_dir(folder.join("refs")).into_iter().flatten().flatten() {
            if fs::read_to_string(reference.path()).is_ok_and(|commit| commit.trim() == snapshot.commit) {
                fs::remove_file(reference.path()).map_err(|e| failed(&reference.path(), e))?;
            }
        }
        fs::remove_dir_all(&snapshot.folder).map_err(|e| failed(&snapshot.folder, e))
    }
}

/// Whether both are files of the same length.
fn same_size(a: &Path, b: &Path) -> bool {
    let size = |path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
    size(a).is_some() && size(a) == size(b)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITS: [&str; 2] = ["0123456789012345678901234567890123456789", "abcdefabcdefabcdefabcdefabcdefabcdefabcd"];

    fn cache(root: &Path, links: bool) -> (Cache, Repo) {
        (Cache { root: root.into(), links }, "A/B".parse().unwrap())
    }

    fn put(cache: &Cache, repo: &Repo, commit: &str, name: &str, hash: &str) -> Snapshot {
        let snapshot = cache.snapshot(repo, commit);
        cache.prepare(repo, "main", &snapshot).unwrap();
        let blob = cache.blob(repo, hash);
        fs::write(&blob, hash).unwrap();
        cache.link(&blob, &snapshot, name).unwrap();
        if blob.exists() {
            cache.link(&blob, &snapshot, name).unwrap();
        }
        cache.set_reference(repo, "main", commit).unwrap();
        snapshot
    }

    #[test]
    fn revisions_resolve_to_snapshots() {
        for links in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (cache, repo) = cache(dir.path(), links);
            assert_eq!(cache.find(&repo, "main"), None);
            let snapshot = put(&cache, &repo, COMMITS[0], "x.json", "aa");
            assert_eq!(cache.find(&repo, "main").as_ref(), Some(&snapshot));
            assert_eq!(cache.find(&repo, COMMITS[0]).as_ref(), Some(&snapshot));
            assert_eq!(fs::read_to_string(snapshot.folder.join("x.json")).unwrap(), "aa");
            assert_eq!(fs::symlink_metadata(snapshot.folder.join("x.json")).unwrap().is_symlink(), links);
            for wrong in ["../../x", "/etc/passwd", "", "a//b", ".hidden", "a\\b"] {
                assert!(cache.set_reference(&repo, wrong, COMMITS[0]).is_err(), "{wrong}");
            }
            cache.set_reference(&repo, "refs/pr/1", COMMITS[0]).unwrap();
            assert_eq!(cache.find(&repo, "refs/pr/1"), Some(snapshot));
        }
    }

    #[test]
    fn shared_blobs_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, repo) = cache(dir.path(), true);
        let first = put(&cache, &repo, COMMITS[0], "x", "aa");
        put(&cache, &repo, COMMITS[0], "y", "bb");
        let second = put(&cache, &repo, COMMITS[1], "x", "aa");
        cache.remove(&repo, &first).unwrap();
        assert!(!first.folder.exists() && !cache.blob(&repo, "bb").exists());
        assert_eq!(fs::read_to_string(second.folder.join("x")).unwrap(), "aa");
        assert_eq!(cache.find(&repo, "main").as_ref(), Some(&second));
        cache.remove(&repo, &second).unwrap();
        assert!(!dir.path().join("models--A--B").exists());
    }
}
