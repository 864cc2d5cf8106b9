//! Shared bytes: part of a memory map, of the binary, or of a buffer.

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

/// Bytes shared by reference; cloning and slicing do not copy.
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

    /// Maps the whole `file`; `path` is its name in messages.
    pub fn map_open(file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io("cannot open", path, e))?;
        let name = || path.display().to_string();
        if meta.is_dir() {
            return Err(Error::NotGguf { file: name(), problem: "is a directory" });
        }
        if meta.len() == 0 {
            return Err(Error::format(name(), "is empty"));
        }
        let map = Mapping::new(file, path)?;
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::Mapped(map)), range })
    }

    /// Returns a view of static bytes.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { source: Arc::new(Source::Static(bytes)), range: 0..bytes.len() }
    }

    /// Returns the bytes in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Arc::new(Source::Owned(bytes)), range }
    }

    /// Returns the whole file that these bytes belong to.
    pub fn entire(&self) -> Self {
        Self { source: self.source.clone(), range: 0..self.source.bytes().len() }
    }

    /// Returns a part of these bytes; `None` if `range` is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { source: self.source.clone(), range: start..start + range.len() })
    }

    /// Releases the pages of these bytes (MADV_DONTNEED); they are read from the file again when needed.
    pub fn release(&self) {
        if let Source::Mapped(map) = &*self.source {
            map.release(&self.range);
        }
    }

    /// Fails if the bytes are mapped from a file that another program changed since.
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
