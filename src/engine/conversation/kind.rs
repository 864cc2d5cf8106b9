//! The kinds of session files, and which files may be overwritten.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    Error, FileContents, Result,
    format::gguf,
    state::{SESSION_MAGIC, session_header},
};

/// The purpose of a session file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A conversation.
    Chat,
    /// A text to continue.
    Text,
    /// The state after a prompt.
    Prompt,
}

/// The part of a session file's header that determines its kind.
#[derive(Deserialize)]
struct Header {
    marks: Vec<IgnoredAny>,
    more: More,
}

#[derive(Deserialize)]
struct More {
    /// Absent in version 0.1.
    kind: Option<Kind>,
    chat: Option<IgnoredAny>,
}

/// Fails if the file at `path` is not a session of `kind`, unless `force`. A model is never replaced, even with
/// `force`. `path` must not be a directory or a device.
pub fn check_replaceable(path: &Path, kind: Kind, force: bool) -> Result<()> {
    let contents = match File::open(path).and_then(|file| contents(file, kind)) {
        Ok(contents) => contents,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("cannot read", path, e)),
    };
    match contents {
        Some(contents) if !force || contents == FileContents::Model => {
            Err(Error::NotReplaced { path: path.into(), contents })
        }
        _ => Ok(()),
    }
}

/// Returns what `file` contains; `None` if it is a session of `kind`.
fn contents(mut file: File, kind: Kind) -> io::Result<Option<FileContents>> {
    let mut start = Vec::new();
    (&mut file).take(SESSION_MAGIC.len() as u64).read_to_end(&mut start)?;
    if start.starts_with(&gguf::MAGIC) {
        return Ok(Some(FileContents::Model));
    }
    if start != SESSION_MAGIC {
        return Ok(Some(FileContents::Other));
    }
    let Some(Header { marks, more }) = session_header(file)? else { return Ok(Some(FileContents::Damaged)) };
    let found = match more {
        More { kind: Some(kind), .. } => kind,
        More { chat: Some(_), .. } => Kind::Chat,
        _ if !marks.is_empty() => Kind::Prompt,
        _ if kind == Kind::Prompt => Kind::Prompt,
        _ => Kind::Text,
    };
    Ok((found != kind).then_some(match found {
        Kind::Chat => FileContents::Conversation,
        Kind::Text => FileContents::Text,
        Kind::Prompt => FileContents::Prompt,
    }))
}
