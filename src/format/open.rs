//! Opening files to read.

use std::{fs::File, path::Path};

use crate::{Error, Result};

/// Opens the file or folder at `path` to read from any place of it. A pipe with a name, which would have to wait for who
/// writes to it, is refused at once, and so are devices.
pub fn open_file(path: &Path) -> Result<File> {
    let failed = |e| Error::io("cannot open", path, e);
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() || kind.is_dir() {
        return Ok(file);
    }
    #[cfg(unix)]
    let pipe = std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    let pipe = false;
    let what = if pipe { "a pipe" } else { "a device" };
    Err(Error::format(
        path.display().to_string(),
        format!("is {what}, not a file; write what it gives to a file first"),
    ))
}
