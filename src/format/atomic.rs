//! Files that appear whole or not at all.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use tempfile::{Builder, NamedTempFile};

use crate::{Error, Result};

/// A file under a temporary name beside its final one; dropped before [`commit`](Self::commit), it leaves nothing.
pub struct AtomicFile {
    path: PathBuf,
    temporary: NamedTempFile,
    force: bool,
}

/// Finds out whether a file could be created at `path`, before any work is spent on it. An existing file is refused
/// unless `force`. Returns the path to rename to: where `path` is a symbolic link, the file that it names.
pub fn check_output(path: &Path, force: bool) -> Result<PathBuf> {
    let name = || path.display().to_string();
    if let Ok(meta) = fs::metadata(path) {
        if !meta.is_file() {
            return Err(Error::format(name(), "is a directory or a device; name a file to write"));
        }
        if !force {
            return Err(Error::format(name(), "exists already; add --force to replace it"));
        }
        return fs::canonicalize(path).map_err(|e| Error::io("cannot open", path, e));
    }
    if path.file_name().is_none() {
        return Err(Error::format(name(), "is no name for a file; name a file to write"));
    }
    match fs::metadata(parent(path)) {
        Ok(meta) if meta.is_dir() => Ok(path.to_owned()),
        Ok(_) => Err(Error::format(name(), format!("cannot be written: {} is no directory", parent(path).display()))),
        Err(e) => Err(Error::io("cannot open directory", parent(path), e)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl AtomicFile {
    /// Opens a temporary file beside `path`.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let path = check_output(path, force)?;
        let mut prefix = path.file_name().unwrap_or_default().to_os_string();
        prefix.push(".tmp");
        let mut builder = Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file: the umask takes away from this.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(parent(&path)).map_err(|e| {
            // tempfile's message repeats its path; ours names the file that the user asked for.
            Error::io("cannot create", &path, e.raw_os_error().map_or(e, io::Error::from_raw_os_error))
        })?;
        Ok(Self { path, temporary, force })
    }

    /// The temporary file's path.
    pub fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// The open file.
    pub fn file(&mut self) -> &mut fs::File {
        self.temporary.as_file_mut()
    }

    /// An error of the operating system while writing, told with the final path.
    pub fn error(&self, source: io::Error) -> Error {
        Error::io("cannot write", &self.path, source)
    }

    /// Puts the file on the disk and gives it its final name.
    pub fn commit(self) -> Result<()> {
        let Self { path, temporary, force } = self;
        let failed = |e| Error::io("cannot write", &path, e);
        temporary.as_file().sync_all().map_err(failed)?;
        let renamed = if force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        renamed.map_err(|e| failed(e.error))?;
        #[cfg(unix)]
        if let Ok(directory) = fs::File::open(parent(&path)) {
            // The name survives a power failure only once the directory is written too; some file systems can't say.
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

/// Writes a whole file: `fill` gets a buffered writer, and `path` changes only after it has succeeded and everything
/// is on the disk. An existing file is refused unless `force`.
pub fn write_atomically(path: &Path, force: bool, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path, force)?;
    let mut buffered = BufWriter::new(file.file());
    let filled = fill(&mut buffered).and_then(|()| buffered.flush());
    // Without its buffer: a failed write must not be tried again on drop.
    let _ = buffered.into_parts();
    filled.map_err(|e| file.error(e))?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let failed = write_atomically(&path, false, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("stopped"))
        });
        assert_eq!(failed.unwrap_err().to_string(), format!("cannot write {}: stopped", path.display()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        write_atomically(&path, false, |w| w.write_all(b"one")).unwrap();
        let again = write_atomically(&path, false, |w| w.write_all(b"two")).unwrap_err().to_string();
        assert!(again.contains("--force"), "{again}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomically(&path, true, |w| w.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_what_cannot_be_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_output(dir.path(), true).is_err());
        assert!(check_output(&dir.path().join("missing/file"), false).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn keeps_symbolic_links() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomically(&link, true, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }
}
