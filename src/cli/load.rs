//! Reads a model that is not in the page cache, with a progress bar. It is memory-mapped, and would otherwise be paged
//! in during the first tokens without any sign of progress.

use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    sync::atomic::AtomicBool,
};

use hymba::{Error, Result};

use super::{progress::Bar, terminal};

/// Reads the file at `path` if it is not in the page cache and progress is shown. Errors are ignored: opening the model
/// reports them.
pub fn load(path: &Path, quiet: bool, cancel: &AtomicBool) -> Result<()> {
    if quiet || !terminal::draws() {
        return Ok(());
    }
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let Some(size) = file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len() as usize) else {
        return Ok(());
    };
    if is_cached(&file, size) || file.rewind().is_err() {
        return Ok(());
    }
    let bar = Bar::bytes(true);
    read_all(file, cancel, &mut |read| bar.show(read.min(size), size))
}

/// Reads `from` to its end, which fills the page cache; `progress` receives the bytes read so far.
fn read_all(mut from: impl Read, cancel: &AtomicBool, progress: &mut dyn FnMut(usize)) -> Result<()> {
    let mut piece = vec![0; 8 << 20];
    let mut read = 0;
    while let Ok(count @ 1..) = from.read(&mut piece) {
        Error::check_cancelled(cancel)?;
        read += count;
        progress(read);
    }
    Ok(())
}

/// Whether the file is in the page cache, judged by a sample of its pages.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, size: usize) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    const SAMPLES: usize = 64;
    (0..SAMPLES).all(|sample| {
        let mut byte = [0];
        let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
        let at = (size / SAMPLES * sample) as u64;
        preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT) != Err(Errno::AGAIN)
    })
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
fn is_cached(_file: &File, _size: usize) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn evicted_pages_are_noticed_and_reading_brings_them_back() {
        use std::io::Write;

        use rustix::fs::{Advice, fadvise, fstatfs};

        const SIZE: usize = 1 << 20;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; SIZE]).unwrap();
        assert!(is_cached(&file, SIZE));
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        const TMPFS: i64 = 0x0102_1994; // its pages are its storage
        if fstatfs(&file).unwrap().f_type as i64 != TMPFS {
            assert!(!is_cached(&file, SIZE));
        }
        file.rewind().unwrap();
        read_all(&file, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert!(is_cached(&file, SIZE));
    }

    /// A disk that returns at most 1,000 bytes per read.
    struct Slow(usize);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.min(1000).min(buffer.len());
            self.0 -= count;
            Ok(count)
        }
    }

    #[test]
    fn slow_reads_report_progress_and_can_be_cancelled() {
        let (cancel, mut seen) = (AtomicBool::new(false), Vec::new());
        read_all(Slow(2500), &cancel, &mut |read| seen.push(read)).unwrap();
        assert_eq!(seen, [1000, 2000, 2500]);
        let cancelled = read_all(Slow(2500), &cancel, &mut |_| cancel.store(true, Relaxed));
        assert!(matches!(cancelled, Err(Error::Cancelled)));
    }
}
