//! Locks between processes, compatible with Python's `filelock`, so that its downloads and ours wait for each other.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use crate::{Error, Result};

/// Polling interval of a lock held by another process.
const PERIOD: Duration = Duration::from_millis(100);

/// A lock, held until it is dropped or the process ends.
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Locks the file at `path`; `waits` is called once if another process holds the lock. Without file system support
    /// there is no lock, and work may be done twice, but correctly.
    pub fn take(path: &Path, waits: &mut dyn FnMut(), cancel: &AtomicBool) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
        }
        let mut notified = false;
        loop {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
            let file = file.map_err(|e| Error::io("cannot open", path, e))?;
            match file.try_lock() {
                // A lock file that its last owner removed protects nothing.
                Ok(()) if !is_at(&file, path) => continue,
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::Error(_)) => return Ok(Self { _file: None }),
                Err(TryLockError::WouldBlock) => (),
            }
            if !notified {
                notified = true;
                waits();
            }
            Error::check_cancelled(cancel)?;
            thread::sleep(PERIOD);
        }
    }
}

/// Whether `path` still refers to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file_id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let (opened, current) = (file.metadata().ok().map(file_id), fs::metadata(path).ok().map(file_id));
        opened.is_some() && opened == current
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path); // open files cannot be removed on this system
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn locks_are_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock");
        let no = AtomicBool::new(false);
        let first = Lock::take(&path, &mut || panic!("the lock is free"), &no).unwrap();
        let cancel = AtomicBool::new(false);
        let mut waited = 0;
        let second = Lock::take(
            &path,
            &mut || {
                waited += 1;
                cancel.store(true, Ordering::Relaxed)
            },
            &cancel,
        );
        assert!(matches!(second, Err(Error::Cancelled)) && waited == 1);
        fs::remove_file(&path).unwrap(); // as filelock may
        drop(first);
        let third = Lock::take(&path, &mut || panic!("the lock is free"), &no).unwrap();
        assert!(path.exists());
        drop(third);
    }
}
