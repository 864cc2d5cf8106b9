//! Errors with their own exit behavior.

use std::path::Path;

/// Incompatible flags or an invalid value: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An error that was already reported: exit code 1 without a message.
#[derive(Debug, thiserror::Error)]
#[error("already reported")]
pub struct Reported;

/// The output ended before it matched its constraint, which was already reported: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("the text is incomplete")]
pub struct Incomplete;

/// Rejects the output file `-`, which would mean standard output.
pub fn output_file(flag: &str, path: &Path) -> Result<(), Usage> {
    if path.as_os_str() != "-" {
        return Ok(());
    }
    Err(Usage(format!("{flag}: cannot write to standard output; name a file (./- for one called -)")))
}
