//! The hashes that name blobs in the cache: SHA-256 for large files, git's SHA-1 for others.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::atomic::AtomicBool,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result, format::open_file};

/// The expected hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hash {
    /// Of the bytes, in hex.
    Sha256(String),
    /// Of the bytes as a blob in git, in hex.
    Git(String),
}

impl Hash {
    /// Parses an ETag as a hash.
    pub fn from_etag(etag: &str) -> Option<Self> {
        let hex = etag.trim().trim_start_matches("W/").trim_matches('"');
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match hex.len() {
            64 if is_hex => Some(Self::Sha256(hex.into())),
            40 if is_hex => Some(Self::Git(hex.into())),
            _ => None,
        }
    }

    /// Returns the hash in hex, which is the file's name in the cache.
    pub fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::Git(hex)) = self;
        hex
    }

    /// Whether the file at `path` has this hash. `progress` receives the number of bytes read in each step.
    pub fn matches(&self, path: &Path, progress: &mut dyn FnMut(u64), cancel: &AtomicBool) -> Result<bool> {
        let mut file = open_file(path)?;
        let failed = |e: io::Error| Error::io("cannot read", path, e);
        let found = match self {
            Self::Sha256(_) => digest(Sha256::new(), &mut file, progress, cancel),
            Self::Git(_) => {
                let length = file.metadata().map_err(failed)?.len();
                digest(git_blob(length), &mut file, progress, cancel)
            }
        };
        Error::check_cancelled(cancel)?;
        Ok(found.map_err(failed)? == self.hex())
    }

    /// Whether `bytes` have this hash.
    pub fn matches_bytes(&self, bytes: &[u8]) -> bool {
        let found = match self {
            Self::Sha256(_) => hex(&Sha256::digest(bytes)),
            Self::Git(_) => hex(&git_blob(bytes.len() as u64).chain_update(bytes).finalize()),
        };
        found == self.hex()
    }
}

/// Returns git's hasher for a blob of this length.
fn git_blob(length: u64) -> Sha1 {
    Sha1::new().chain_update(format!("blob {length}\0"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest<D: Digest>(
    mut hasher: D,
    file: &mut File,
    progress: &mut dyn FnMut(u64),
    cancel: &AtomicBool,
) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    while Error::check_cancelled(cancel).is_ok() {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        progress(n as u64);
    }
    Ok(hex(&hasher.finalize()))
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::Git(hex) => write!(f, "git blob {hex}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_sha256sum_and_git() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        for (etag, same) in [
            ("\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"", true),
            ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be04", false),
            ("W/\"ce013625030ba8dba906f756967f9e9ca394464a\"", true),
            ("ce013625030ba8dba906f756967f9e9ca394464b", false),
        ] {
            let hash = Hash::from_etag(etag).unwrap();
            let mut read = 0;
            assert_eq!(hash.matches(&path, &mut |n| read += n, &AtomicBool::new(false)).unwrap(), same, "{etag}");
            assert!(read == 6 && hash.matches_bytes(b"hello\n") == same);
        }
        for etag in ["", "abc", "../../etc/passwd", "CE013625030BA8DBA906F756967F9E9CA394464A"] {
            assert_eq!(Hash::from_etag(etag), None);
        }
    }
}
