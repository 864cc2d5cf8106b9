//! Locks between processes. They are the files and the system calls of Python's `filelock`, so that its downloads and ours
//! wait for each other.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use crate::{Error, Result};

/// How often a lock is tried that another process has.
const PERIOD: Duration = Duration::from_millis(100);

/// A lock, held until it is dropped or the process ends.
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock on the file at `path`; `waits` is told once if another process has it. Where the file system knows no
    /// locks there is none: what they guard stays right without, and is done twice at worst.
    pub fn take(path: &Path, waits: &mut dyn FnMut(), cancel: &AtomicBool) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, e))?;
        }
        let mut told = false;
        loop {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
            let file = file.map_err(|e| Error::io("cannot open", path, e))?;
            match file.try_lock() {
                // One that its last owner removed is nobody's lock any more.
                Ok(()) if !is_at(&file, path) => continue,
                Ok(()) => return Ok(Self { _file: Some(file) }),
                Err(TryLockError::Error(_)) => return Ok(Self { _file: None }),
                Err(TryLockError::WouldBlock) => (),
            }
            if !told {
                told = true;
                waits();
            }
            Error::check_cancelled(cancel)?;
            thread::sleep(PERIOD);
        }
    }
}

/// Whether `file` is still what `path` names.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let (opened, there) = (file.metadata().ok().map(place), fs::metadata(path).ok().map(place));
        opened.is_some() && opened == there
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path); // an open file can't be removed there
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock");
        let no = AtomicBool::new(false);
        let first = Lock::take(&path, &mut || panic!("nobody has it"), &no).unwrap();
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
        let third = Lock::take(&path, &mut || panic!("nobody has it"), &no).unwrap();
        assert!(path.exists());
        drop(third);
    }
}
