//! Errors. A message is one sentence that names the file, if any, and the problem; programs match on variants to add
//! advice in terms of their own flags.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// All errors of the library. `file` is the file's name as the user gave it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "a variant's message names its fields")]
pub enum Error {
    /// A failed system call; `doing` is a verb phrase such as "cannot open".
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A file is invalid.
    #[error("{file}: {problem}")]
    Format { file: String, problem: String },
    /// An output file already exists and must not be replaced.
    #[error("{}: already exists", .0.display())]
    Exists(PathBuf),
    /// An output file already exists and is of another kind.
    #[error("{}: {contents}, and was not replaced", .path.display())]
    NotReplaced {
        /// The file.
        path: PathBuf,
        /// Its contents.
        contents: FileContents,
    },
    /// A model path is another kind of file, or a folder.
    #[error("{file}: {problem}")]
    NotGguf { file: String, problem: &'static str },
    /// A GGUF file lacks part of its model, or has it in an unsupported form; converting the model again helps.
    #[error("{file}: {problem}")]
    Model { file: String, problem: String },
    /// A model file has no tokenizer: only token ids can be used.
    #[error("{0}: has no tokenizer")]
    NoTokenizer(String),
    /// A chat template does not parse, or fails on these messages; its lines count from 1.
    #[error("{origin}: is not a usable chat template{}: {problem}", line_number(.line))]
    Template { origin: String, line: Option<usize>, problem: String },
    /// A session file does not fit this session.
    #[error("{file}: {reason}")]
    SessionMismatch { file: String, reason: Mismatch },
    /// A calibration file does not fit this model.
    #[error("{file}: {problem}")]
    Calibration { file: String, problem: String },
    /// A type override matches no tensor.
    #[error("`{pattern}={dtype}` matches no tensor whose type can be changed")]
    NoSuchTensor { pattern: String, dtype: &'static str },
    /// A tensor's values exceed the range of its target type, first in this row; `official` is its name in the official
    /// checkpoint.
    #[error("tensor `{name}` ({official}) has values in row {row} that are too large for {dtype}")]
    TensorRange { name: String, official: String, row: usize, dtype: &'static str },
    /// More tokens than the context has left.
    #[error("{needed} more tokens do not fit: {free} of {context} tokens are left in the context")]
    ContextFull { needed: usize, free: usize, context: usize },
    /// A conversation with the new message does not fit into the context: it would have `needed` tokens.
    #[error(
        "message too long: it needs {} tokens, including one for the reply, but only {free} of {context} are free in the context",
        .needed + 1 + .free - .context
    )]
    ConversationFull { needed: usize, free: usize, context: usize },
    /// A token id is outside of the vocabulary.
    #[error("token id {id} is out of range: the vocabulary has ids 0 to {}", .vocab.saturating_sub(1))]
    TokenOutOfRange { id: u32, vocab: usize },
    /// There are no turns to undo or regenerate.
    #[error("no messages yet")]
    NoTurns,
    /// A new branch has the name of an existing one.
    #[error("branch `{0}` already exists")]
    BranchExists(String),
    /// There is no branch of this name.
    #[error("unknown branch `{name}`; branches: {}", .known.join(", "))]
    UnknownBranch { name: String, known: Vec<String> },
    /// The model's head widths are not multiples of the KV cache type's block.
    #[error(
        "a KV cache of type {cache} needs heads whose widths are multiples of {block}; this model has {key_dim} and \
         {value_dim}"
    )]
    CacheTypeWidth { cache: &'static str, key_dim: usize, value_dim: usize, block: usize },
    /// The GPU does not support this KV cache type.
    #[error("the GPU does not support a KV cache of type {0}")]
    GpuCacheType(&'static str),
    /// Keys or values exceed the range of the KV cache's type.
    #[error("layer {layer} produces keys or values that are too large for a KV cache of type {cache}")]
    CacheRange { layer: usize, cache: &'static str },
    /// An operation, named here, produced activations that are not finite.
    #[error(
        "{0} produced values that are not finite: the weights are damaged or too sensitive for their quantization type; convert the model again"
    )]
    NotFinite(String),
    /// Not enough memory for a session of `wanted` bytes; a smaller context needs less. `available` is `None` if
    /// unknown or if an allocation failed.
    #[error("not enough memory for the KV cache{}: {} needed{}", activations(.available), size(.wanted), free(.available))]
    OutOfMemory { wanted: u64, available: Option<u64> },
    /// The GPU cannot allocate this many bytes.
    #[error("not enough GPU memory: {} more needed", size(&(*.0 as u64)))]
    GpuOutOfMemory(usize),
    /// There is no GPU, or it cannot run this model: a complete sentence. The CPU can.
    #[error("{0}")]
    GpuUnsupported(String),
    /// The GPU failed while working; its state is lost.
    #[error("the GPU failed: {0}")]
    Gpu(String),
    /// A constraint cannot be enforced; `location` is the part that causes it: a JSON pointer or a line.
    #[error("{}{problem}", .location.as_ref().map(|location| format!("at {location}: ")).unwrap_or_default())]
    Constraint { location: Option<String>, problem: String },
    /// Too many operations of this kind are in progress; a retry may succeed: a complete sentence.
    #[error("{0}")]
    Busy(&'static str),
    /// The operation was cancelled.
    #[error("interrupted")]
    Cancelled,
    /// An invalid request (too long, out of range, not supported) that programs need not distinguish: a complete
    /// sentence.
    #[error("{0}")]
    Request(String),
}

/// The contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileContents {
    /// A saved conversation.
    #[error("is a conversation")]
    Conversation,
    /// A text.
    #[error("is a `run` session")]
    Text,
    /// A processed prompt.
    #[error("is a prompt cache")]
    Prompt,
    /// A model. It is never replaced by a session.
    #[error("is a model file (GGUF)")]
    Model,
    /// An unreadable session.
    #[error("is damaged, or a session file of another version")]
    Damaged,
    /// Anything else.
    #[error("is not a hymba session file")]
    Other,
}

/// Why a session file cannot be resumed here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "a variant's message names its fields")]
pub enum Mismatch {
    /// It was created with another model file, with this name if it has one.
    #[error(
        "was created with a different model ({}); use that model file",
        if .0.is_empty() { "another".to_owned() } else { format!("`{}`", .0) }
    )]
    Model(String),
    /// Its KV cache has another type.
    #[error("has a KV cache of type {saved}, but the current type is {cache}")]
    CacheType { saved: String, cache: &'static str },
    /// It exceeds the context.
    #[error("has {tokens} tokens, but the context size is {context}")]
    Tokens { tokens: usize, context: usize },
    /// It contains a conversation, not a text.
    #[error("is a conversation, not a `run` session")]
    Conversation,
    /// It contains a text, not a conversation.
    #[error("is a `run` session, not a conversation")]
    Text,
}

impl Error {
    /// Returns the error that a file is invalid.
    pub fn format(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Format { file: file.into(), problem: problem.into() }
    }

    /// Returns the error that a model file should be converted again.
    pub fn model(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Model { file: file.into(), problem: problem.into() }
    }

    /// Returns the error of a failed system call on `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { doing, path: path.into(), source }
    }

    /// Fails with [`Error::Cancelled`] once `cancel` is set.
    pub fn check_cancelled(cancel: &AtomicBool) -> Result<()> {
        if cancel.load(Ordering::Relaxed) { Err(Self::Cancelled) } else { Ok(()) }
    }
}

fn line_number(line: &Option<usize>) -> String {
    line.map(|line| format!(", line {line}")).unwrap_or_default()
}

fn size(bytes: &u64) -> String {
    match *bytes as f64 {
        few if few < 1e5 => format!("{few} bytes"),
        some if some < 1e9 => format!("{:.1} MB", some / 1e6),
        many => format!("{:.1} GB", many / 1e9),
    }
}

fn activations(available: &Option<u64>) -> &'static str {
    if available.is_none() { " and activations" } else { "" }
}

fn free(available: &Option<u64>) -> String {
    available.as_ref().map_or_else(String::new, |bytes| format!(", {} available", size(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sizes_are_not_rounded_to_zero() {
        let message = |wanted, available| Error::OutOfMemory { wanted, available }.to_string();
        assert_eq!(
            message(2_500_000_000, Some(1_000)),
            "not enough memory for the KV cache: 2.5 GB needed, 1000 bytes available"
        );
        assert_eq!(message(3_000_000, None), "not enough memory for the KV cache and activations: 3.0 MB needed");
    }
}
