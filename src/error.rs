//! What can go wrong, one sentence a variant. The sentence names the file or flag and says what to do.

use std::{io, path::PathBuf};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything the library reports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; `doing` is a verb phrase such as "cannot open".
    #[error("{doing} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{file}: {what}")]
    Format {
        /// The file's name as the user gave it.
        file: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The request can't be met (too long, out of range, not supported): the whole sentence.
    #[error("{0}")]
    Request(String),
    /// Activations are no numbers any more: what made them.
    #[error(
        "{0} made values that are not finite: the weights are damaged, or do not bear their type; convert the model again"
    )]
    NotFinite(String),
    /// Keys or values are out of the range of the KV cache's type.
    #[error(
        "layer {layer} makes keys or values that are too large for a KV cache of type {cache}; take --cache-type f32"
    )]
    CacheRange {
        /// Which layer.
        layer: usize,
        /// The type's name.
        cache: &'static str,
    },
    /// The GPU stopped while it was at work: the whole sentence. What it was working on is lost.
    #[error("{0}")]
    Gpu(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// A file that is not what it should be.
    pub fn format(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Format { file: file.into(), what: what.into() }
    }

    /// A failed call of the operating system on `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { doing, path: path.into(), source }
    }
}
