//! Wrong usage, which has an exit code of its own.

/// Flags that make no sense together or a value out of range: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
