//! Errors that end the program otherwise than others do.

use std::path::Path;

/// Flags that make no sense together or a value out of range: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What the user has read about already: there is nothing to add, but the exit code is 1.
#[derive(Debug, thiserror::Error)]
#[error("it was reported")]
pub struct Reported;

/// A text that was cut before it matched what it has to, which the user has read about: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("the text is incomplete")]
pub struct Incomplete;

/// Refuses to write to a file called `-`, by which standard output would be meant.
pub fn output_file(flag: &str, path: &Path) -> Result<(), Usage> {
    if path.as_os_str() != "-" {
        return Ok(());
    }
    Err(Usage(format!("{flag}: standard output cannot take this; name a file (./- for one called -)")))
}
