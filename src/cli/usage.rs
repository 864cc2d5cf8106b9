//! Errors that end the program otherwise than others do.

/// Flags that make no sense together or a value out of range: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What the user has read about already: there is nothing to add, but the exit code is 1.
#[derive(Debug, thiserror::Error)]
#[error("it was reported")]
pub struct Reported;
