//! Opening files for reading.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::{Error, Result};

/// Opens the file or folder at `path` for random access. FIFOs, which would block until a writer appears, and devices
/// are rejected.
pub fn open_file(path: &Path) -> Result<File> {
    let failed = |e| Error::io("cannot open", path, e);
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| dangling(path).unwrap_or_else(|| failed(e)))?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() || kind.is_dir() {
        return Ok(file);
    }
    #[cfg(unix)]
    let pipe = std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    let pipe = false;
    let kind = if pipe { "a pipe" } else { "a device" };
    Err(Error::format(
        path.display().to_string(),
        format!("is {kind}, not a regular file; save its contents to a file first"),
    ))
}

/// Whether there is a file or folder at `path`; fails for a dangling link, as in an incomplete download.
pub fn exists(path: &Path) -> Result<bool> {
    if path.exists() { Ok(true) } else { dangling(path).map_or(Ok(false), Err) }
}

/// Returns the error for a dangling link, if `path` is one.
fn dangling(path: &Path) -> Option<Error> {
    let target = fs::read_link(path).ok()?;
    let gone = fs::metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let problem = format!("is a link to {}, which does not exist; download it again", target.display());
    gone.then(|| Error::format(path.display().to_string(), problem))
}
