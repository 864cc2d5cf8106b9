//! Memory-mapped files, and a handler for SIGBUS, which reading pages beyond the end of a shortened file raises and
//! which would kill the process without a message.

use std::{
    fs::{File, Metadata},
    ops::{Deref, Range},
    path::Path,
    sync::{Mutex, PoisonError},
};

use memmap2::Mmap;

use crate::{Error, Result};

/// The error for a file that another program wrote to.
pub(crate) const CHANGED: &str =
    "was shortened or overwritten by another program while in use; restore it and try again";

/// Whether a file is unchanged since the metadata `then`, judging by length and modification time.
pub(crate) fn is_unchanged(then: &Metadata, now: &Metadata) -> bool {
    now.len() == then.len() && now.modified().ok() == then.modified().ok()
}

/// Active mappings, with the messages for lost pages.
static MAPPINGS: Mutex<Vec<(Range<usize>, String)>> = Mutex::new(Vec::new());

fn mappings() -> std::sync::MutexGuard<'static, Vec<(Range<usize>, String)>> {
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A memory-mapped file.
pub(super) struct Mapping {
    map: Mmap,
    file: File,
    name: String,
    /// The file's metadata when it was mapped.
    then: Metadata,
}

impl Mapping {
    /// Maps the non-empty `file`, opened at `path`.
    pub(super) fn new(file: File, path: &Path) -> Result<Self> {
        let failed = |e| Error::io("cannot map", path, e);
        let then = file.metadata().map_err(failed)?;
        // SAFETY: the map is private and read-only. Another process may still modify the file, which `check` detects;
        // lost pages are caught by the signal handler. Our own writers replace files rather than modify them.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        // Request huge pages where the file system supports them: decode reads 8 % faster.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (start, name) = (map.as_ptr() as usize, path.display().to_string());
        mappings().push((start..start + map.len(), format!("hymba: {name}: {CHANGED}\n")));
        Ok(Self { map, file, name, then })
    }

    /// Fails if another program modified or shortened the file since it was mapped. Renaming or replacing it is
    /// harmless.
    pub(super) fn check(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(now) if is_unchanged(&self.then, &now) => Ok(()),
            _ => Err(Error::format(&self.name, CHANGED)),
        }
    }

    /// Releases the pages of these bytes.
    pub(super) fn release(&self, _bytes: &Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and file-backed, so released pages are read again unchanged.
            let advice = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, _bytes.start, _bytes.len())
            };
            // Ignored advice costs memory, not correctness.
            let _ = advice;
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = self.map.as_ptr() as usize;
        mappings().retain(|(range, _)| range.start != start);
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Installs a SIGBUS handler: reading lost pages of a mapped file on any thread exits with a message and exit code 1.
/// Other causes of the signal go to the previous handler. (Windows does not allow shortening mapped files.)
pub fn install_sigbus_handler() {
    #[cfg(unix)]
    signal::install();
}

#[cfg(unix)]
mod signal {
    use std::{mem::MaybeUninit, sync::OnceLock};

    use super::mappings;

    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    pub(super) fn install() {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        let handler: Handler = on_bus_error;
        let mut before = MaybeUninit::uninit();
        // SAFETY: both structures live through the calls; zeros are a valid `sigaction`, with an empty mask. The first
        // call only queries, so that the handler knows its predecessor.
        unsafe {
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) == 0
                && BEFORE.set(before.assume_init()).is_ok()
            {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = handler as libc::sighandler_t;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            }
        }
    }

    /// The faulting thread cannot hold the lock of the mapping list, so taking it cannot deadlock. Writing and exiting
    /// are async-signal-safe.
    extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands a valid structure to handlers that were installed with SA_SIGINFO.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        // A signal sent by a process has no address, and may arrive while the list is locked.
        let sent = code <= 0;
        if !sent && let Some((_, message)) = mappings().iter().find(|(range, _)| range.contains(&address)) {
            // SAFETY: the message has the given length, and the process exits without running other code.
            unsafe {
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
                libc::_exit(1);
            }
        }
        // SAFETY: reinstalls the previous handler or the default, as returned by the system. A faulting load is retried
        // on return and raises the signal again; a sent signal is sent again.
        unsafe {
            if sent {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            } else if let Some(before) = BEFORE.get() {
                libc::sigaction(signal, before, std::ptr::null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, time::Duration};

    use super::*;

    #[test]
    fn changes_to_a_file_are_detected_and_replacing_it_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&path, [1; 5000]).unwrap();
        fs::write(&other, [2; 6000]).unwrap();
        let map = || Mapping::new(File::open(&path).unwrap(), &path).unwrap();
        let first = map();
        first.check().unwrap();
        fs::rename(&other, &path).unwrap();
        first.check().unwrap();
        assert_eq!(first[4999], 1);
        let second = map();
        std::thread::sleep(Duration::from_millis(20)); // longer than the file system's timestamp granularity
        File::options().write(true).open(&path).unwrap().write_all(&[3]).unwrap();
        let message = second.check().unwrap_err().to_string();
        assert!(message.contains("file: was shortened or overwritten"), "{message}");
        let third = map();
        third.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(third.check().is_err());
        first.check().unwrap();
    }
}
