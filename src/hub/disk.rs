//! Free disk space.

use std::path::Path;

/// Returns the nearest existing ancestor of `path`.
fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|folder| folder.exists())
}

/// Returns the free bytes on the file system of `path`, which need not exist yet; `None` if unknown.
#[cfg(unix)]
pub fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(existing(path)?).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Returns the free bytes on the file system of `path`, which need not exist yet; `None` if unknown.
#[cfg(windows)]
pub fn free_space(path: &Path) -> Option<u64> {
    use std::os::windows::ffi::OsStrExt;

    use windows_sys::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;

    let folder: Vec<u16> = existing(path)?.as_os_str().encode_wide().chain([0]).collect();
    let mut free = 0;
    // SAFETY: the folder's name is zero-terminated, and `free` outlives the call; null outputs are not written.
    let succeeded =
        unsafe { GetDiskFreeSpaceExW(folder.as_ptr(), &mut free, std::ptr::null_mut(), std::ptr::null_mut()) != 0 };
    succeeded.then_some(free)
}

/// Whether two paths, which need not exist yet, share a file system. If unknown, they do.
pub fn same_disk(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path| Some(existing(path)?.metadata().ok()?.dev());
        device(a) == device(b)
    }
    #[cfg(not(unix))]
    {
        let root = |path: &Path| path.components().next().map(|first| first.as_os_str().to_owned());
        root(a) == root(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_reports_free_space() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("not/yet/there");
        assert!(free_space(&missing).is_some_and(|bytes| bytes > 0));
        assert!(same_disk(&missing, dir.path()));
    }
}
