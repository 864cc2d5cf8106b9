//! A session in a file: one versioned, checksummed container, written whole or not at all.
//!
//! `hymbases`, the version (u32), the header's length (u32), the header (JSON), the payload, and the BLAKE3 hash of all
//! of that. Little-endian.

use std::{fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result, format::write_atomically};

const MAGIC: &[u8; 8] = b"hymbases";
const VERSION: u32 = 1;
const HASH: usize = 32;
const PREFIX: usize = MAGIC.len() + 4 + 4;

/// Writes `header` and `payload` to `path`; a file that is there is replaced when the new one is on the disk.
pub fn write_session(path: &Path, header: &impl Serialize, payload: &[u8]) -> Result<()> {
    let unfit = |e: String| Error::format(path.display().to_string(), format!("cannot be written: {e}"));
    let header = serde_json::to_vec(header).map_err(|e| unfit(e.to_string()))?;
    let length = u32::try_from(header.len()).map_err(|_| unfit("the conversation is too long for a file".into()))?;
    let prefix = [&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), &header].concat();
    let hash = blake3::Hasher::new().update(&prefix).update_rayon(payload).finalize();
    write_atomically(path, true, |file| {
        file.write_all(&prefix)?;
        file.write_all(payload)?;
        file.write_all(hash.as_bytes())
    })
}

/// What is in the session file at `path`: header and payload.
pub fn read_session<H: DeserializeOwned>(path: &Path) -> Result<(H, Vec<u8>)> {
    let mut bytes = fs::read(path).map_err(|e| Error::io("cannot open", path, e))?;
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    if !bytes.starts_with(MAGIC) {
        return Err(bad("is no session file of hymba"));
    }
    const DAMAGED: &str = "is damaged: its checksum is wrong, or its end is missing; restore it from a copy";
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(version), Some(length)) = (number(MAGIC.len()), number(MAGIC.len() + 4)) else {
        return Err(bad(DAMAGED));
    };
    if version != VERSION {
        return Err(bad(&format!("is a session file of version {version}; this hymba reads version {VERSION}")));
    }
    let header = PREFIX..PREFIX + length as usize;
    let Some(end) = bytes.len().checked_sub(HASH).filter(|&end| header.end <= end) else { return Err(bad(DAMAGED)) };
    if blake3::Hasher::new().update_rayon(&bytes[..end]).finalize() != bytes[end..] {
        return Err(bad(DAMAGED));
    }
    let parsed = serde_json::from_slice(&bytes[header.clone()])
        .map_err(|e| bad(&format!("holds a session that this hymba does not understand: {e}")))?;
    bytes.truncate(end);
    bytes.drain(..header.end);
    Ok((parsed, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for payload in [vec![], vec![7; 3], vec![1; 1 << 20]] {
            write_session(&path, &"header", &payload).unwrap();
            assert_eq!(read_session::<String>(&path).unwrap(), ("header".to_string(), payload));
        }
    }

    #[test]
    fn every_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write_session(&path, &["header"], &[7; 5]).unwrap();
        let whole = fs::read(&path).unwrap();
        let refusal = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_session::<Vec<String>>(&path).unwrap_err().to_string()
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let said = refusal(&bytes);
            let expected = match at {
                0..8 => "is no session file",
                8..12 => "of version",
                _ => "is damaged",
            };
            assert!(said.contains(expected), "byte {at}: {said}");
            assert!(refusal(&whole[..at]).contains(if at < 8 { "is no session" } else { "is damaged" }), "cut at {at}");
        }
        assert!(refusal(&[&whole[..], b"x"].concat()).contains("is damaged"));
        write_session(&path, &1, &[]).unwrap();
        assert!(read_session::<String>(&path).unwrap_err().to_string().contains("does not understand"));
    }
}
