//! A file in memory, and what happens when another program takes away what is mapped: reading pages that the file no
//! longer has raises SIGBUS, which would end the process without a word.

use std::{
    fs::{File, Metadata},
    ops::{Deref, Range},
    path::Path,
    sync::{Mutex, PoisonError},
};

use memmap2::Mmap;

use crate::{Error, Result};

/// What is said of a file that another program wrote to.
pub(crate) const CHANGED: &str =
    "was shortened or overwritten by another program while it was in use; put it back, and start again";

/// Whether a file that was like `then` has not been written to, as far as its length and time of change tell.
pub(crate) fn is_unchanged(then: &Metadata, now: &Metadata) -> bool {
    now.len() == then.len() && now.modified().ok() == then.modified().ok()
}

/// The mappings there are, with what to say when pages of them are gone.
static MAPPINGS: Mutex<Vec<(Range<usize>, String)>> = Mutex::new(Vec::new());

fn mappings() -> std::sync::MutexGuard<'static, Vec<(Range<usize>, String)>> {
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A whole file, mapped.
pub(super) struct Mapping {
    map: Mmap,
    file: File,
    name: String,
    /// What the file was like when it was mapped.
    then: Metadata,
}

impl Mapping {
    /// Maps `file`, which is not empty, and was opened at `path`.
    pub(super) fn new(file: File, path: &Path) -> Result<Self> {
        let failed = |e| Error::io("cannot map", path, e);
        let then = file.metadata().map_err(failed)?;
        // SAFETY: the map is private and read-only. Another process can still change what it shows: that is noticed by
        // `check`, and pages that are gone by the signal handler. Our own writers replace files, and change none.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        // What is not in memory yet comes in big pages then, where the file system can: decode reads 8 % faster from them.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (start, name) = (map.as_ptr() as usize, path.display().to_string());
        mappings().push((start..start + map.len(), format!("hymba: {name}: {CHANGED}\n")));
        Ok(Self { map, file, name, then })
    }

    /// An error if another program wrote to the file, or shortened it, since it was mapped. A file that was given another
    /// name, or that another took the place of, is as it was.
    pub(super) fn check(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(now) if is_unchanged(&self.then, &now) => Ok(()),
            _ => Err(Error::format(&self.name, CHANGED)),
        }
    }

    /// Tells the system that these bytes are not needed soon.
    pub(super) fn release(&self, _bytes: &Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and backed by the file, so that a dropped page is read again unchanged.
            let advice = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, _bytes.start, _bytes.len())
            };
            // Advice that is not taken costs memory, not correctness.
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

/// From now on, reading pages that a mapped file no longer has ends this process with a sentence and exit code 1, whichever
/// thread it is. Other reasons for the signal go to who handled it before. (Windows lets nobody shorten a mapped file.)
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
        // call only asks, so that the handler finds what was before it.
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

    /// A load from a mapping raises the signal in the thread that loads, and none does so with the list of mappings in hand:
    /// the lock is free, or soon will be. Writing and leaving are allowed in a handler.
    extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands a valid structure to handlers that were installed with SA_SIGINFO.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        // One that was sent by a process has no address, and may have come while the list was in hand.
        let sent = code <= 0;
        if !sent && let Some((_, message)) = mappings().iter().find(|(range, _)| range.contains(&address)) {
            // SAFETY: the message is as long as it says, and the process ends without running anything else of it.
            unsafe {
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
                libc::_exit(1);
            }
        }
        // SAFETY: who is installed now is the system's default, or who was before, as the system gave it. A load is tried
        // again when this returns, and its signal goes there; one that was sent is sent again.
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
    fn a_changed_file_is_noticed_and_a_replaced_one_is_not() {
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
        std::thread::sleep(Duration::from_millis(20)); // longer than a tick of the file system's clock
        File::options().write(true).open(&path).unwrap().write_all(&[3]).unwrap();
        let said = second.check().unwrap_err().to_string();
        assert!(said.contains("file: was shortened or overwritten"), "{said}");
        let third = map();
        third.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(third.check().is_err());
        first.check().unwrap();
    }
}
