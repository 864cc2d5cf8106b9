//! The session file: a versioned, checksummed container, written atomically.
//!
//! `hymbases`, the version (u32), the header's length (u32), the header (JSON), the payload, and the BLAKE3 hash of all
//! of that. Little-endian.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result,
    format::{CHANGED, Privacy, is_unchanged, open_file, write_atomically},
    limits, threads,
};

/// The magic bytes of session files.
pub const SESSION_MAGIC: &[u8; 8] = b"hymbases";
const VERSION: u32 = 1;
const HASH: usize = 32;
const PREFIX: usize = SESSION_MAGIC.len() + 4 + 4;

/// Writes `header` and the payload to `path`, replacing an existing file once the new one is on disk. `payload`
/// receives a function that appends bytes.
pub fn write_session(
    path: &Path,
    header: &impl Serialize,
    payload: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> Result<()> {
    let unfit = |e: String| Error::format(path.display().to_string(), format!("cannot be written: {e}"));
    let header = serde_json::to_vec(header).map_err(|e| unfit(e.to_string()))?;
    let length = Some(header.len()).filter(|&n| n <= limits::SESSION_HEADER).and_then(|n| u32::try_from(n).ok());
    let length = length.ok_or_else(|| unfit("the conversation is too long for a file".into()))?;
    let prefix = [&SESSION_MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), &header].concat();
    let mut hasher = blake3::Hasher::new();
    write_atomically(path, true, Privacy::Private, |file| {
        let mut write = |bytes: &[u8]| {
            threads::hash(&mut hasher, bytes);
            file.write_all(bytes)
        };
        write(&prefix)?;
        payload(&mut write)?;
        file.write_all(hasher.finalize().as_bytes())
    })
}

/// The payload of a verified session file.
pub struct Payload {
    file: File,
    /// The file's metadata before it was read.
    then: Metadata,
    path: PathBuf,
    start: u64,
}

impl Payload {
    /// Returns `length` bytes at offset `from` of the payload.
    pub fn read(&self, from: usize, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(self.start + from as u64)).and_then(|_| file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(|e| Error::io("cannot read", &self.path, e))
    }

    /// Fails if another program wrote to the file since it was verified.
    pub fn check(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(now) if is_unchanged(&self.then, &now) => Ok(()),
            _ => Err(Error::format(self.path.display().to_string(), CHANGED)),
        }
    }
}

/// Bytes of a payload hashed at once.
const READ_BYTES: usize = 4 << 20;

/// Opens the session file at `path`: returns the result of `check` on the header, and the payload, which stays on disk.
/// `check` also returns the payload's length, which bounds what is read.
pub fn read_session<H: DeserializeOwned, T>(
    path: &Path,
    check: impl FnOnce(H) -> Result<(T, usize)>,
) -> Result<(T, Payload)> {
    let failed = |e| Error::io("cannot open", path, e);
    let bad = |problem: &str| Error::format(path.display().to_string(), problem);
    const DAMAGED: &str = "is damaged: its checksum is wrong, or its end is missing; restore it from a copy";
    let mut file = open_file(path)?;
    let then = file.metadata().map_err(failed)?;
    let size = then.len();
    let mut start = Vec::with_capacity(PREFIX);
    (&mut file).take(PREFIX as u64).read_to_end(&mut start).map_err(failed)?;
    if !start.starts_with(SESSION_MAGIC) {
        return Err(bad("is not a hymba session file"));
    }
    let number = |at: usize| start.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(version), Some(length)) = (number(SESSION_MAGIC.len()), number(SESSION_MAGIC.len() + 4)) else {
        return Err(bad(DAMAGED));
    };
    if version != VERSION {
        return Err(bad(&format!("is a session file of version {version}; this release reads version {VERSION}")));
    }
    let length = length as usize;
    let Some(rest) = size.checked_sub((PREFIX + length + HASH) as u64) else { return Err(bad(DAMAGED)) };
    if length > limits::SESSION_HEADER {
        let limit = limits::SESSION_HEADER / limits::MB;
        return Err(bad(&format!("has a header of {length} bytes; the limit is {limit} MB")));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&start).update(&header);
    let checked = serde_json::from_slice(&header)
        .map_err(|e| bad(&format!("contains an unsupported session: {e}")))
        .and_then(check)
        .and_then(|(checked, wanted)| match u64::try_from(wanted) {
            Ok(wanted) if wanted == rest => Ok(checked),
            _ => Err(bad("is inconsistent; restore it from a copy")),
        });
    drop(header);
    // Report damage rather than its consequences.
    let mut remaining = rest;
    let mut piece = vec![0; READ_BYTES.min(usize::try_from(rest).unwrap_or(READ_BYTES))];
    while remaining > 0 {
        let bytes = usize::try_from(remaining).unwrap_or(READ_BYTES).min(READ_BYTES);
        file.read_exact(&mut piece[..bytes]).map_err(failed)?;
        threads::hash(&mut hasher, &piece[..bytes]);
        remaining -= bytes as u64;
    }
    let mut hash = [0; HASH];
    file.read_exact(&mut hash).map_err(failed)?;
    if *hasher.finalize().as_bytes() != hash {
        return Err(bad(DAMAGED));
    }
    let start = (PREFIX + length) as u64;
    checked.map(|checked| (checked, Payload { file, then, path: path.into(), start }))
}

/// Returns the header after [`SESSION_MAGIC`] in `file`; `None` if it has another version or is not an `H`. The
/// checksum is not verified.
pub fn session_header<H: DeserializeOwned>(mut file: impl Read) -> io::Result<Option<H>> {
    let mut number = || {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    };
    let (Ok(VERSION), Ok(length)) = (number(), number()) else { return Ok(None) };
    if length as usize > limits::SESSION_HEADER {
        return Ok(None);
    }
    let mut header = Vec::new();
    file.take(length.into()).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns the header and the payload, which is `length` bytes long.
    fn read<H: DeserializeOwned>(path: &Path, length: usize) -> Result<(H, Vec<u8>)> {
        let (header, payload) = read_session(path, |header| Ok((header, length)))?;
        payload.check()?;
        Ok((header, payload.read(0, length)?))
    }

    #[test]
    fn session_files_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for payload in [vec![], vec![7; 3], vec![1; 9 << 20]] {
            write_session(&path, &"header", |write| payload.chunks(1000).try_for_each(write)).unwrap();
            assert_eq!(read::<String>(&path, payload.len()).unwrap(), ("header".to_string(), payload));
        }
    }

    #[test]
    fn all_damage_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write_session(&path, &["header"], |write| write(&[7; 5])).unwrap();
        let file = fs::read(&path).unwrap();
        let refusal = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read::<Vec<String>>(&path, 5).unwrap_err().to_string()
        };
        for at in 0..file.len() {
            let mut bytes = file.clone();
            bytes[at] ^= 0x10;
            let message = refusal(&bytes);
            let expected = match at {
                0..8 => "is not a hymba session file",
                8..12 => "of version",
                _ => "is damaged",
            };
            assert!(message.contains(expected), "byte {at}: {message}");
            assert!(
                refusal(&file[..at]).contains(if at < 8 { "is not a hymba session" } else { "is damaged" }),
                "cut at {at}"
            );
        }
        assert!(refusal(&[&file[..], b"x"].concat()).contains("is damaged"));
        write_session(&path, &1, |_| Ok(())).unwrap();
        assert!(read::<String>(&path, 0).unwrap_err().to_string().contains("unsupported session"));
        assert!(read::<u32>(&path, usize::MAX).unwrap_err().to_string().contains("is inconsistent"));
        // nothing of that size exists or is allocated
        let mut bytes = [&SESSION_MAGIC[..], &VERSION.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        fs::write(&path, &bytes).unwrap();
        assert!(read::<u32>(&path, 0).unwrap_err().to_string().contains("is damaged"));
        bytes[12..].copy_from_slice(&(limits::SESSION_HEADER as u32 + 1).to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
        let message = read::<u32>(&path, 0).unwrap_err().to_string();
        assert!(message.contains("has a header of 128000001 bytes; the limit is 128 MB"), "{message}");
    }
}
