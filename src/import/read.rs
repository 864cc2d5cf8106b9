//! Text and JSON files of a folder.

use std::{io::Read, path::Path};

use serde::de::DeserializeOwned;

use crate::{Error, Result, format::open_file, limits};

/// Reads a text file of bounded length.
pub(super) fn text(path: &Path) -> Result<String> {
    let failed = |e| Error::io("cannot read", path, e);
    let bad = |what: &str| Error::format(path.display().to_string(), what);
    let mut bytes = Vec::new();
    open_file(path)?.take(limits::FOLDER_TEXT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limits::FOLDER_TEXT {
        return Err(bad("is too large to be what its name says"));
    }
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text; download it again"))
}

/// Reads a JSON file.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &text(path)?)
}

/// Reads the JSON `text` of the file at `path`.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::format(path.display().to_string(), format!("is not the JSON that belongs there: {e}")))
}
