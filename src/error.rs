//! What can go wrong. A variant's text is one sentence that names the file, if there is one, and says what is wrong; how
//! to put it right with a program's own switches is for that program to add, by matching.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything the library reports. A `file` is the file's name as the user gave it; types go by their names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "a variant's message names its fields")]
pub enum Error {
    /// The operating system refused; `doing` is a verb phrase such as "cannot open".
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A file is not what it should be.
    #[error("{file}: {what}")]
    Format { file: String, what: String },
    /// A file to write is there already, and was not to be replaced.
    #[error("{}: exists already", .0.display())]
    Exists(PathBuf),
    /// A file to write is there already, and holds something else than what would replace it.
    #[error("{}: {holds}, and is not replaced", .path.display())]
    NotReplaced {
        /// The file.
        path: PathBuf,
        /// What is in it.
        holds: Holds,
    },
    /// What was named as a model is another kind of file, or a folder.
    #[error("{file}: {what}")]
    NotGguf { file: String, what: &'static str },
    /// A GGUF file lacks a part of its model, or has it in a form that can't be read; converting the model again helps.
    #[error("{file}: {what}")]
    Model { file: String, what: String },
    /// A model file has no tokenizer: it takes token ids only.
    #[error("{0}: has no tokenizer")]
    NoTokenizer(String),
    /// A chat template does not parse, or fails on these messages; its lines count from 1.
    #[error("{origin}: is no usable chat template{}: {what}", line_number(.line))]
    Template { origin: String, line: Option<usize>, what: String },
    /// A session file was made for something else.
    #[error("{file}: {why}")]
    SessionMismatch { file: String, why: Mismatch },
    /// A file is no calibration of this model.
    #[error("{file}: {what}")]
    Calibration { file: String, what: String },
    /// A choice of types by name concerns no tensor.
    #[error("`{pattern}={dtype}` matches no tensor that can change its type")]
    NoSuchTensor { pattern: String, dtype: &'static str },
    /// A tensor has values beyond the range of the type that it is converted to, in this row first; `official` is its name
    /// in the official checkpoint.
    #[error("tensor `{name}` ({official}) holds values in row {row} that are too large for {dtype}")]
    TensorRange { name: String, official: String, row: usize, dtype: &'static str },
    /// More tokens than the context has room for.
    #[error("{needed} more tokens do not fit: the context holds {context}, {free} of them free")]
    ContextFull { needed: usize, free: usize, context: usize },
    /// A conversation does not fit into the context, with what was to be added to it: it would be `needed` tokens long.
    #[error(
        "message too long: {} tokens with the first of its reply, but only {free} of {context} are left in the context",
        .needed + 1 + .free - .context
    )]
    ConversationFull { needed: usize, free: usize, context: usize },
    /// A token id that the model does not have.
    #[error("token id {id} is out of the vocabulary: ids go from 0 to {}", .vocab.saturating_sub(1))]
    TokenOutOfRange { id: u32, vocab: usize },
    /// There are no turns to take back or to hear again.
    #[error("nothing was said yet")]
    NothingSaid,
    /// A new branch has the name of one that is there.
    #[error("there is a branch `{0}` already")]
    BranchExists(String),
    /// There is no branch of this name.
    #[error("there is no branch `{name}`; there is {}", .known.join(", "))]
    UnknownBranch { name: String, known: Vec<String> },
    /// The heads of this model can't be stored in whole blocks of the KV cache's type.
    #[error(
        "a KV cache of type {cache} needs heads whose widths are multiples of {block}; this model has {key_dim} and \
         {value_dim}"
    )]
    CacheTypeWidth { cache: &'static str, key_dim: usize, value_dim: usize, block: usize },
    /// The GPU can't have a KV cache of this type.
    #[error("a KV cache of type {0} is the CPU's alone")]
    GpuCacheType(&'static str),
    /// Keys or values are out of the range of the KV cache's type.
    #[error("layer {layer} makes keys or values that are too large for a KV cache of type {cache}")]
    CacheRange { layer: usize, cache: &'static str },
    /// Activations are no numbers any more: what made them.
    #[error(
        "{0} made values that are not finite: the weights are damaged, or do not bear their type; convert the model again"
    )]
    NotFinite(String),
    /// There is no memory for a session of so many bytes; a shorter context takes less. `available` is `None` where the
    /// system does not tell what is free, or refused it.
    #[error("there is no memory for {} of cache{}", size(.wanted), free(.available))]
    OutOfMemory { wanted: u64, available: Option<u64> },
    /// The GPU has no memory for so many bytes more.
    #[error("the GPU has no memory for {} more", size(&(*.0 as u64)))]
    GpuOutOfMemory(usize),
    /// There is no GPU, or it can't run this model: the whole sentence. The CPU can.
    #[error("{0}")]
    GpuUnsupported(String),
    /// The GPU stopped while it was at work. What it was working on is lost.
    #[error("the GPU failed: {0}")]
    Gpu(String),
    /// What a text should match can't be enforced; `place` is where in it, as a JSON pointer or a line.
    #[error("{}{what}", .place.as_ref().map(|place| format!("at {place}: ")).unwrap_or_default())]
    Constraint { place: Option<String>, what: String },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The request can't be met (too long, out of range, not supported), for a reason that no program needs to tell from
    /// others: the whole sentence.
    #[error("{0}")]
    Request(String),
}

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Holds {
    /// A saved conversation.
    #[error("holds a conversation")]
    Conversation,
    /// A running text.
    #[error("holds a text to go on with")]
    Text,
    /// A prompt that was read.
    #[error("holds a prompt that was read")]
    Prompt,
    /// A model. It is never replaced by a session.
    #[error("is a model file (GGUF)")]
    Model,
    /// A session that can't be read.
    #[error("is damaged, or a session file of another version")]
    Damaged,
    /// Anything else.
    #[error("is no session file of hymba")]
    Other,
}

/// Why a session file can't be gone on with here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "a variant's message names its fields")]
pub enum Mismatch {
    /// It belongs to another model file, whose model has this name if it has one.
    #[error(
        "belongs to another model file (its model is {}); open it with the file it was made with",
        if .0.is_empty() { "another".to_owned() } else { format!("`{}`", .0) }
    )]
    Model(String),
    /// Its keys and values are stored in another type.
    #[error("has a KV cache of type {saved}, this is {cache}")]
    CacheType { saved: String, cache: &'static str },
    /// It is longer than the context.
    #[error("holds {tokens} tokens, but the context has room for {context}")]
    Tokens { tokens: usize, context: usize },
    /// It holds a conversation where a running text is wanted.
    #[error("holds a conversation")]
    Conversation,
    /// It holds a running text where a conversation is wanted.
    #[error("holds a text")]
    Text,
}

impl Error {
    /// A file that is not what it should be.
    pub fn format(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Format { file: file.into(), what: what.into() }
    }

    /// A model file that should be converted again.
    pub fn model(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Model { file: file.into(), what: what.into() }
    }

    /// A failed call of the operating system on `path`.
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

fn free(available: &Option<u64>) -> String {
    available.as_ref().map_or(" and activations".into(), |bytes| format!(", {} are free", size(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_size_is_rounded_to_nothing() {
        let said = |wanted, available| Error::OutOfMemory { wanted, available }.to_string();
        assert_eq!(said(2_500_000_000, Some(1_000)), "there is no memory for 2.5 GB of cache, 1000 bytes are free");
        assert_eq!(said(3_000_000, None), "there is no memory for 3.0 MB of cache and activations");
    }
}
