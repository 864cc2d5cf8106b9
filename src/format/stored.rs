//! Tensors that are read from a file in pieces. Unlike pages of a [`Blob`](super::Blob), the data does not stay in
//! memory, so that files larger than memory can be converted.

use std::{
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Blob, DType,
    mapping::{CHANGED, is_unchanged},
    open::open_file,
    packed::Packing,
};
use crate::{Error, Result};

/// A source of tensors.
pub(crate) enum Source {
    /// A file, with its metadata when it was opened.
    File { path: PathBuf, file: File, then: Metadata },
    /// Bytes in memory.
    Memory(Vec<u8>),
}

impl Source {
    /// Opens the file at `path`, mapping it to read its header.
    pub(crate) fn open(path: &Path) -> Result<(Arc<Self>, Blob)> {
        let failed = |e| Error::io("cannot open", path, e);
        let file = open_file(path)?;
        let then = file.metadata().map_err(failed)?;
        let blob = Blob::map_open(file.try_clone().map_err(failed)?, path)?;
        Ok((Arc::new(Self::File { path: path.to_owned(), file, then }), blob))
    }

    /// Fails if another program wrote to the file, or shortened it, since it was opened.
    fn check(&self) -> Result<()> {
        let Self::File { path, file, then } = self else { return Ok(()) };
        match file.metadata() {
            Ok(now) if is_unchanged(then, &now) => Ok(()),
            _ => Err(Error::format(path.display().to_string(), CHANGED)),
        }
    }
}

/// A tensor whose values are in the file.
#[derive(Clone)]
pub struct Stored {
    pub(crate) source: Arc<Source>,
    pub(crate) offset: u64,
    /// Sizes, slowest first: `[rows, columns]`.
    pub dims: Vec<usize>,
    /// How the values are stored.
    pub dtype: DType,
    /// The order of the stored blocks.
    pub packing: Packing,
}

impl Stored {
    /// Returns a tensor in memory, row-major.
    pub(crate) fn in_memory(bytes: Vec<u8>, dims: Vec<usize>, dtype: DType) -> Self {
        Self { source: Arc::new(Source::Memory(bytes)), offset: 0, dims, dtype, packing: Packing::Plain }
    }

    /// Fails if another program wrote to the tensor's file since it was opened.
    pub(crate) fn check_source(&self) -> Result<()> {
        self.source.check()
    }

    /// Fills `out` with the bytes that start `from` bytes after the tensor's first.
    pub fn read(&self, from: u64, out: &mut [u8]) -> Result<()> {
        match &*self.source {
            Source::File { path, file, .. } => {
                read_exact_at(file, out, self.offset + from).map_err(|e| match e.kind() {
                    io::ErrorKind::UnexpectedEof => Error::format(path.display().to_string(), CHANGED),
                    _ => Error::io("cannot read", path, e),
                })
            }
            Source::Memory(bytes) => {
                out.copy_from_slice(&bytes[(self.offset + from) as usize..][..out.len()]);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
