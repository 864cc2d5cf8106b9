//! Atomic files: they appear complete or not at all.
//!
//! On Linux a file is anonymous (O_TMPFILE) until it is complete, so a killed process leaves nothing; only replacing a
//! file takes a temporary name, between two system calls. Other systems, and file systems without anonymous files, use
//! a temporary name from the start. The next writer of the same file removes leftovers of killed processes: a running
//! writer holds a lock on its temporary file.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use tempfile::{Builder, NamedTempFile};

use crate::{Error, Result};

/// A file being written; if dropped before [`commit`](Self::commit), it leaves nothing.
pub struct AtomicFile {
    path: PathBuf,
    temporary: Temporary,
    force: bool,
}

enum Temporary {
    Named(NamedTempFile),
    /// Path at which an anonymous file can be opened.
    #[cfg(target_os = "linux")]
    Unnamed(File, PathBuf),
}

/// Permissions of a new file. A replaced file keeps its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// According to the umask.
    Shared,
    /// Owner only, for private conversations.
    Private,
}

/// Checks in advance whether a file can be created at `path`. An existing file is rejected unless `force`, and always
/// if it is not writable. Returns the path to rename to: the target, if `path` is a symbolic link.
pub fn check_output(path: &Path, force: bool) -> Result<PathBuf> {
    let name = || path.display().to_string();
    if let Ok(meta) = fs::metadata(path) {
        if !meta.is_file() {
            return Err(Error::format(name(), "is a directory or a device; name a file to write"));
        }
        if !force {
            return Err(Error::Exists(path.into()));
        }
        // Renaming over a file needs no write permission for it, so check that separately.
        if meta.permissions().readonly() {
            return Err(Error::format(name(), "is read-only and was not replaced; name another file"));
        }
        File::options().write(true).open(path).map_err(|e| Error::io("cannot replace", path, e))?;
        return fs::canonicalize(path).map_err(|e| Error::io("cannot open", path, e));
    }
    if let Ok(target) = fs::read_link(path) {
        let problem = format!("is a link to {}, which does not exist; name a file to write", target.display());
        return Err(Error::format(name(), problem));
    }
    if path.file_name().is_none() {
        return Err(Error::format(name(), "is not a file name; name a file to write"));
    }
    match fs::metadata(parent(path)) {
        Ok(meta) if meta.is_dir() => Ok(path.to_owned()),
        Ok(_) => {
            Err(Error::format(name(), format!("cannot be written: {} is not a directory", parent(path).display())))
        }
        Err(e) => Err(Error::io("cannot open directory", parent(path), e)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the prefix of temporary names for `path`, which six alphanumeric characters follow. Long names are
/// truncated.
fn prefix(path: &Path) -> String {
    const ROOM: usize = 200; // of the 255 bytes that file systems allow
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=name.len().min(ROOM)).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    format!(".{}.hymba-", &name[..end])
}

/// Locks the open file until it is closed. Without lock support, no file counts as a leftover.
#[cfg(unix)]
fn lock(file: &File) -> bool {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Removes leftovers of killed writers of `path`.
#[cfg(unix)]
fn sweep(path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let prefix = prefix(path);
    for entry in fs::read_dir(parent(path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.as_bytes().strip_prefix(prefix.as_bytes());
        let is_ours = rest.is_some_and(|rest| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric));
        let is_left = || entry.file_type()?.is_file().then(|| File::open(entry.path())).transpose();
        if is_ours && is_left().is_ok_and(|file| file.is_some_and(|file| lock(&file))) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(unix)]
impl Privacy {
    /// Returns the mode of a new file, before the umask.
    fn mode(self) -> u32 {
        match self {
            Self::Shared => 0o666,
            Self::Private => 0o600,
        }
    }
}

impl Temporary {
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
    fn create(path: &Path, privacy: Privacy, unnamed: bool) -> io::Result<Self> {
        #[cfg(unix)]
        sweep(path);
        #[cfg(target_os = "linux")]
        if let Some(temporary) = unnamed.then(|| Self::unnamed(parent(path), privacy.mode())).flatten() {
            return Ok(temporary);
        }
        let prefix = prefix(path);
        let mut builder = Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            builder.permissions(fs::Permissions::from_mode(privacy.mode()));
            loop {
                let file = builder.tempfile_in(parent(path))?;
                // A sweep before the lock was taken may have removed it.
                if !lock(file.as_file()) || file.as_file().metadata()?.nlink() > 0 {
                    return Ok(Self::Named(file));
                }
            }
        }
        #[cfg(not(unix))]
        Ok(Self::Named(builder.tempfile_in(parent(path))?))
    }

    /// Creates an anonymous file, if the file system supports it and it can be linked later.
    #[cfg(target_os = "linux")]
    fn unnamed(folder: &Path, mode: u32) -> Option<Self> {
        use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
        let mut options = File::options();
        options.read(true).write(true).mode(mode).custom_flags(libc::O_TMPFILE);
        let file = options.open(folder).ok()?;
        lock(&file);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        path.exists().then_some(Self::Unnamed(file, path))
    }

    /// Links the file to its name.
    fn persist(self, path: &Path, force: bool) -> io::Result<()> {
        match self {
            Self::Named(file) => {
                let renamed = if force { file.persist(path) } else { file.persist_noclobber(path) };
                renamed.map(drop).map_err(|e| e.error)
            }
            #[cfg(target_os = "linux")]
            Self::Unnamed(_file, from) => {
                let link = |to: &Path| {
                    use rustix::fs::{AtFlags, CWD, linkat};
                    Ok::<_, io::Error>(linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
                };
                match link(path) {
                    Err(e) if force && e.kind() == io::ErrorKind::AlreadyExists => {
                        let linked = Builder::new().prefix(&prefix(path)).make_in(parent(path), link)?;
                        linked.persist(path).map_err(|e| e.error)
                    }
                    linked => linked,
                }
            }
        }
    }
}

impl AtomicFile {
    /// Starts writing the file `path`. An existing one is rejected unless `force`.
    pub fn create(path: &Path, force: bool, privacy: Privacy) -> Result<Self> {
        Self::create_as(path, force, privacy, true)
    }

    fn create_as(path: &Path, force: bool, privacy: Privacy, unnamed: bool) -> Result<Self> {
        let path = check_output(path, force)?;
        let temporary = Temporary::create(&path, privacy, unnamed).map_err(|e| {
            // tempfile's message contains the temporary path; ours names the requested file.
            Error::io("cannot create", &path, e.raw_os_error().map_or(e, io::Error::from_raw_os_error))
        })?;
        let mut file = Self { path, temporary, force };
        if let Ok(replaced) = fs::metadata(&file.path) {
            let kept = file.file().set_permissions(replaced.permissions());
            kept.map_err(|e| Error::io("cannot keep the permissions of", &file.path, e))?;
        }
        Ok(file)
    }

    /// Returns the path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path at which this process can open the incomplete file.
    pub fn temporary_path(&self) -> &Path {
        match &self.temporary {
            Temporary::Named(file) => file.path(),
            #[cfg(target_os = "linux")]
            Temporary::Unnamed(_, path) => path,
        }
    }

    /// Returns the open file.
    pub fn file(&mut self) -> &mut File {
        match &mut self.temporary {
            Temporary::Named(file) => file.as_file_mut(),
            #[cfg(target_os = "linux")]
            Temporary::Unnamed(file, _) => file,
        }
    }

    /// Returns a write error that names the final path.
    pub fn error(&self, source: io::Error) -> Error {
        Error::io("cannot write", &self.path, source)
    }

    /// Syncs the file to disk and gives it its final name.
    pub fn commit(mut self) -> Result<()> {
        let synced = self.file().sync_all();
        let Self { path, temporary, force } = self;
        synced.and_then(|()| temporary.persist(&path, force)).map_err(|e| Error::io("cannot write", &path, e))?;
        #[cfg(unix)]
        if let Ok(directory) = File::open(parent(&path)) {
            // The name survives a power failure only after the directory is synced, which some file systems do not
            // support.
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

/// Checks whether a file can be written or replaced at `path`, without changing anything.
pub fn check_writable(path: &Path) -> Result<()> {
    AtomicFile::create(path, true, Privacy::Private).map(drop)
}

/// Writes a file atomically: `fill` receives a buffered writer, and `path` changes only after success and a sync to
/// disk. An existing file is rejected unless `force`.
pub fn write_atomically(
    path: &Path,
    force: bool,
    privacy: Privacy,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut file = AtomicFile::create(path, force, privacy)?;
    let mut buffered = BufWriter::new(file.file());
    let filled = fill(&mut buffered).and_then(|()| buffered.flush());
    // Discard the buffer: a failed write must not be retried on drop.
    let _ = buffered.into_parts();
    filled.map_err(|e| file.error(e))?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::{Privacy::*, *};

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let failed = write_atomically(&path, false, Shared, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("stopped"))
        });
        assert_eq!(failed.unwrap_err().to_string(), format!("cannot write {}: stopped", path.display()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        write_atomically(&path, false, Shared, |w| w.write_all(b"one")).unwrap();
        let again = write_atomically(&path, false, Shared, |w| w.write_all(b"two")).unwrap_err();
        assert!(matches!(&again, Error::Exists(refused) if *refused == path), "{again}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomically(&path, true, Shared, |w| w.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// The same with temporary names.
    #[test]
    fn named_temporary_files_are_atomic_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let write = |bytes: &[u8], force| {
            let mut file = AtomicFile::create_as(&path, true, Shared, false)?;
            file.file().write_all(bytes).unwrap();
            assert_eq!(fs::read(file.temporary_path()).unwrap(), bytes);
            file.force = force;
            file.commit()
        };
        write(b"one", false).unwrap();
        assert!(write(b"two", false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(b"two", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Leftovers of killed writers are removed; files of running writers and other files stay.
    #[cfg(unix)]
    #[test]
    fn leftover_temporary_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let create = |name: &str| fs::write(dir.path().join(name), "left").unwrap();
        let other_files =
            [".file.hymba-abc", ".file.hymba-abcdefg", ".file.hymba-abcde~", "file.hymba-abcdef", "file.tmp"];
        other_files.iter().for_each(|name| create(name));
        create(".file.hymba-abc123");
        let active = AtomicFile::create_as(&path, false, Shared, false).unwrap();
        assert!(!dir.path().join(".file.hymba-abc123").exists());
        write_atomically(&path, true, Shared, |w| w.write_all(b"one")).unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert!(active.temporary_path().exists());
        drop(active);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), other_files.len() + 1);
    }

    #[test]
    fn invalid_targets_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_output(dir.path(), true).is_err());
        assert!(check_output(&dir.path().join("missing/file"), false).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn symbolic_links_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomically(&link, true, Shared, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn modes_are_kept_and_conversations_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for unnamed in [true, false] {
            let path = dir.path().join(format!("file-{unnamed}"));
            let write = || AtomicFile::create_as(&path, true, Private, unnamed).unwrap().commit().unwrap();
            write();
            assert_eq!(mode(&path), 0o600);
            for kept in [0o640, 0o604, 0o755] {
                fs::set_permissions(&path, fs::Permissions::from_mode(kept)).unwrap();
                write();
                assert_eq!(mode(&path), kept);
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
            let refused = check_writable(&path).unwrap_err().to_string();
            assert!(refused.contains("is read-only"), "{refused}");
            assert_eq!(mode(&path), 0o444);
        }
    }

    #[test]
    fn a_name_may_be_as_long_as_the_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a".repeat(255), "ä".repeat(127)] {
            let path = dir.path().join(name);
            for unnamed in [true, false] {
                AtomicFile::create_as(&path, true, Shared, unnamed).unwrap().commit().unwrap();
                assert!(path.exists());
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn dangling_links_are_rejected_early() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("gone", &link).unwrap();
        let refused = check_output(&link, true).unwrap_err().to_string();
        assert!(refused.contains("link: is a link to gone, which does not exist"), "{refused}");
    }
}
