//! Reads a model that is not in the page cache, with a progress bar. It is memory-mapped, and would otherwise be paged
//! in during the first tokens without any sign of progress.

use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    sync::atomic::AtomicBool,
};

use hymba::{Error, Result};

use super::{bar::Bar, terminal};

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
    let mut piece = vec![0; 8 << 20];
    let mut read = 0;
    while let Ok(count @ 1..) = file.read(&mut piece) {
        Error::check_cancelled(cancel)?;
        read += count;
        bar.show(read.min(size), size);
    }
    Ok(())
}

/// Whether the file is in the page cache, judged by a sample of its pages.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, size: usize) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    const SAMPLES: usize = 64;
    (0..SAMPLES).all(|place| {
        let mut byte = [0];
        let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
        let at = (size / SAMPLES * place) as u64;
        preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT) != Err(Errno::AGAIN)
    })
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
fn is_cached(_file: &File, _size: usize) -> bool {
    true
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_just_written_is_in_the_page_cache() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        assert!(is_cached(&file, 1 << 20));
    }
}
