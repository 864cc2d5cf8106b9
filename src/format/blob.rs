//! A piece of a file that stays where it is: in a memory map, in the binary itself, or in memory.

use std::{fs::File, ops::Deref, ops::Range, path::Path, sync::Arc};

use super::{mapping::Mapping, open::open_file};
use crate::{Error, Result};

enum Source {
    Mapped(Mapping),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Bytes shared by reference; cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Blob {
    source: Arc<Source>,
    range: Range<usize>,
}

impl Blob {
    /// Maps the whole file at `path`.
    pub fn map(path: &Path) -> Result<Self> {
        Self::map_open(open_file(path)?, path)
    }

    /// Maps the whole `file`, which messages call `path`.
    pub fn map_open(file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io("cannot open", path, e))?;
        let name = || path.display().to_string();
        if meta.is_dir() {
            return Err(Error::NotGguf { file: name(), what: "is a directory" });
        }
        if meta.len() == 0 {
            return Err(Error::format(name(), "is empty"));
        }
        let map = Mapping::new(file, path)?;
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::Mapped(map)), range })
    }

    /// Bytes that are part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { source: Arc::new(Source::Static(bytes)), range: 0..bytes.len() }
    }

    /// Bytes in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Arc::new(Source::Owned(bytes)), range }
    }

    /// All of the file that these bytes are a part of.
    pub fn entire(&self) -> Self {
        Self { source: self.source.clone(), range: 0..self.source.bytes().len() }
    }

    /// A part of these bytes; `None` if `range` is not inside them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { source: self.source.clone(), range: start..start + range.len() })
    }

    /// Tells the system that these bytes are not needed soon: their pages leave this process's memory, and come back
    /// from the file when they are read again.
    pub fn release(&self) {
        if let Source::Mapped(map) = &*self.source {
            map.release(&self.range);
        }
    }

    /// An error if these bytes are a mapped file's, and another program changed the file since it was mapped.
    pub fn check(&self) -> Result<()> {
        match &*self.source {
            Source::Mapped(map) => map.check(),
            Source::Static(_) | Source::Owned(_) => Ok(()),
        }
    }
}

impl Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }
}
