//! A partial download: its bytes in any order, with a journal of the stored ranges.
//!
//! After each piece is written, the journal gets a line with its range and hash. After any interruption, the next
//! process verifies the lines and resumes from the valid ones.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use super::ranges::Ranges;
use crate::{Error, Result};

/// Maximum bytes per journal line: what a connection may lose when the process is killed.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// A partial blob.
pub(super) struct Part {
    paths: Paths,
    file: File,
    journal: File,
    size: u64,
    ranges: Ranges,
    /// Whether it contains unverified data from another program.
    is_foreign: bool,
}

struct Paths {
    part: PathBuf,
    journal: PathBuf,
    bad: PathBuf,
}

impl Paths {
    fn of(blob: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = OsString::from(blob);
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { part: with(".hymba-part"), journal: with(".hymba-ranges"), bad: with(".hymba-bad") }
    }
}

/// Returns the journal's header for a file of `size` bytes.
fn header(size: u64) -> String {
    format!("hymba 1 {size}\n")
}

/// A line of the journal.
struct Line {
    range: Range<u64>,
    hash: String,
    is_foreign: bool,
}

impl Line {
    fn new(start: u64, bytes: &[u8], is_foreign: bool) -> Self {
        let hash = blake3::hash(bytes).to_hex()[..32].to_owned();
        Self { range: start..start + bytes.len() as u64, hash, is_foreign }
    }

    fn parse(line: &str, size: u64) -> Option<Self> {
        let mut words = line.split(' ');
        let range: Range<u64> = words.next()?.parse().ok()?..words.next()?.parse().ok()?;
        let length = range.end.checked_sub(range.start)?;
        let hash = words.next()?.to_owned();
        let fits = range.end <= size && length <= PIECE_BYTES as u64;
        fits.then(|| Self { range, hash, is_foreign: words.next().is_some() })
    }

    fn text(&self) -> String {
        let Self { range, hash, is_foreign } = self;
        format!("{} {} {hash}{}\n", range.start, range.end, if *is_foreign { " foreign" } else { "" })
    }
}

/// Parses the journal's complete lines, if it is for `size` bytes, and returns them with their total length.
fn read_journal(path: &Path, size: u64) -> Option<(Vec<Line>, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let complete = &text[..text.rfind('\n')? + 1];
    let lines = complete.strip_prefix(&*header(size))?.lines();
    Some((lines.filter_map(|line| Line::parse(line, size)).collect(), complete.len() as u64))
}

impl Part {
    /// Resumes a partial `blob` of ours or of Python's client, or starts one. The caller holds the blob's lock.
    pub fn open(blob: &Path, size: u64, cancel: &AtomicBool) -> Result<Self> {
        let paths = Paths::of(blob);
        if !paths.part.exists() {
            adopt_incomplete(blob, size, &paths)?;
        }
        let open = |path: &Path| {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
            file.map_err(|e| Error::io("cannot write", path, e))
        };
        let (file, mut journal) = (open(&paths.part)?, open(&paths.journal)?);
        let failed = |e| Error::io("cannot write", &paths.part, e);
        let mut ranges = Ranges::default();
        let mut is_foreign = false;
        let (lines, length) = read_journal(&paths.journal, size).unwrap_or_default();
        let mut bytes = Vec::new();
        for line in lines {
            Error::check_cancelled(cancel)?;
            let Range { start, end } = line.range;
            bytes.resize((end - start) as usize, 0);
            let read = (&file).seek(SeekFrom::Start(start)).and_then(|_| (&file).read_exact(&mut bytes));
            if read.is_ok() && Line::new(start, &bytes, false).hash == line.hash {
                ranges.insert(line.range);
                is_foreign |= line.is_foreign;
            }
        }
        // Truncate an incomplete line of a killed process.
        journal.set_len(length).and_then(|()| journal.seek(SeekFrom::End(0))).map_err(failed)?;
        if length == 0 {
            journal.write_all(header(size).as_bytes()).map_err(failed)?;
        }
        file.set_len(size).map_err(failed)?;
        Ok(Self { paths, file, journal, size, ranges, is_foreign })
    }

    /// Returns the stored bytes of `blob` according to its journal.
    pub fn peek(blob: &Path, size: u64) -> u64 {
        let paths = Paths::of(blob);
        if !paths.part.exists() {
            return incomplete(blob, size).map_or(0, |(_, bytes)| bytes);
        }
        let mut ranges = Ranges::default();
        read_journal(&paths.journal, size)
            .into_iter()
            .flat_map(|(lines, _)| lines)
            .for_each(|line| ranges.insert(line.range));
        ranges.bytes()
    }

    /// Returns the path of the data.
    pub fn path(&self) -> &Path {
        &self.paths.part
    }

    /// Returns the number of stored bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }

    /// Returns the missing ranges in pieces of at most `max_len` bytes.
    pub fn missing(&self, max_len: u64) -> Vec<Range<u64>> {
        self.ranges.missing(self.size, max_len)
    }

    /// Whether it contains unverified data from another program.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Stores received bytes, at most [`PIECE_BYTES`].
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let line = Line::new(start, bytes, false);
        let written = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(bytes));
        let written = written.and_then(|()| self.journal.write_all(line.text().as_bytes()));
        written.map_err(|e| Error::io("cannot write", &self.paths.part, e))?;
        self.ranges.insert(line.range);
        Ok(())
    }

    /// Discards all data.
    pub fn restart(&mut self) -> Result<()> {
        let cleared = self.journal.set_len(0).and_then(|()| self.journal.rewind());
        let cleared = cleared.and_then(|()| self.journal.write_all(header(self.size).as_bytes()));
        cleared.map_err(|e| Error::io("cannot write", &self.paths.journal, e))?;
        self.ranges = Ranges::default();
        self.is_foreign = false;
        Ok(())
    }

    /// Renames the complete, verified file to its blob.
    pub fn finish(self, blob: &Path) -> Result<()> {
        let failed = |e| Error::io("cannot write", blob, e);
        self.file.sync_all().map_err(failed)?;
        drop((self.file, self.journal));
        fs::rename(&self.paths.part, blob).map_err(failed)?;
        let _ = fs::remove_file(&self.paths.journal); // meaningless without its data
        Ok(())
    }

    /// Moves a complete but invalid file out of the way, and returns its path.
    pub fn quarantine(self) -> Result<PathBuf> {
        let Self { paths, file, journal, .. } = self;
        drop((file, journal));
        fs::remove_file(&paths.journal).map_err(|e| Error::io("cannot remove", &paths.journal, e))?;
        fs::rename(&paths.part, &paths.bad).map_err(|e| Error::io("cannot rename", &paths.part, e))?;
        Ok(paths.bad)
    }
}

/// Returns the longest partial download of `blob` by Python's client: `HASH.incomplete`, or with a random part before
/// the suffix.
fn incomplete(blob: &Path, size: u64) -> Option<(PathBuf, u64)> {
    let hash = blob.file_name()?.to_str()?;
    let is_left = |name: &str| {
        let middle = name.strip_prefix(hash).and_then(|rest| rest.strip_suffix(".incomplete"));
        middle.is_some_and(|middle| {
            let letters = middle.strip_prefix('.').unwrap_or(middle);
            letters.len() <= 8 && letters.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    };
    let found =
        fs::read_dir(blob.parent()?).ok()?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left));
    let with_size = found.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        (meta.is_file() && (1..=size).contains(&meta.len())).then(|| (entry.path(), meta.len()))
    });
    with_size.max_by_key(|&(_, bytes)| bytes)
}

/// Adopts a partial download of Python's client, noting that in the journal.
fn adopt_incomplete(blob: &Path, size: u64, paths: &Paths) -> Result<()> {
    let Some((found, _)) = incomplete(blob, size) else { return Ok(()) };
    let failed = |e: io::Error| Error::io("cannot read", &found, e);
    let mut reader = BufReader::with_capacity(PIECE_BYTES, File::open(&found).map_err(failed)?);
    let mut journal = header(size);
    let mut start = 0;
    loop {
        let bytes = reader.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            break;
        }
        let line = Line::new(start, bytes, true);
        let _ = journal.write_str(&line.text()); // writing to a string cannot fail
        let length = bytes.len();
        start = line.range.end;
        reader.consume(length);
    }
    // The journal first: without data it is ignored, and this is repeated.
    fs::write(&paths.journal, journal).map_err(|e| Error::io("cannot write", &paths.journal, e))?;
    fs::rename(&found, &paths.part).map_err(|e| Error::io("cannot rename", &found, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 * PIECE_BYTES as u64 + 100;

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|i| (i * i / 7) as u8).collect()
    }

    fn open(blob: &Path) -> Part {
        Part::open(blob, SIZE, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn stored_ranges_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, all) = (dir.path().join("ab"), bytes());
        let mut part = open(&blob);
        part.write(PIECE_BYTES as u64, &all[PIECE_BYTES..2 * PIECE_BYTES]).unwrap();
        part.write(0, &all[..10]).unwrap();
        drop(part);
        assert_eq!(Part::peek(&blob, SIZE), PIECE_BYTES as u64 + 10);
        // A truncated line, one of missing bytes, and an invalid one.
        let mut journal = fs::read_to_string(dir.path().join("ab.hymba-ranges")).unwrap();
        journal += &Line::new(2 * PIECE_BYTES as u64, &all[..5], false).text();
        journal += "7 9999999999999 00\nno line\n3145728 31457";
        fs::write(dir.path().join("ab.hymba-ranges"), journal).unwrap();
        let mut part = open(&blob);
        assert_eq!(part.missing(u64::MAX), [10..PIECE_BYTES as u64, 2 * PIECE_BYTES as u64..SIZE]);
        assert!(!part.is_foreign());
        for range in part.missing(PIECE_BYTES as u64) {
            part.write(range.start, &all[range.start as usize..range.end as usize]).unwrap();
        }
        drop(part);
        let part = open(&blob);
        assert_eq!(part.missing(1), []);
        part.finish(&blob).unwrap();
        assert!(fs::read(&blob).unwrap() == all);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn lost_data_is_downloaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, all) = (dir.path().join("ab"), bytes());
        let mut part = open(&blob);
        part.write(0, &all[..PIECE_BYTES]).unwrap();
        part.write(PIECE_BYTES as u64, &all[PIECE_BYTES..PIECE_BYTES + 9]).unwrap();
        part.file.seek(SeekFrom::Start(77)).and_then(|_| part.file.write_all(&[0; 9])).unwrap();
        drop(part);
        assert_eq!(open(&blob).missing(u64::MAX), [0..PIECE_BYTES as u64, PIECE_BYTES as u64 + 9..SIZE]);
        // A file of another size starts over.
        assert_eq!(Part::open(&blob, 50, &AtomicBool::new(false)).unwrap().missing(99), vec![0..50; 1]);
    }

    #[test]
    fn partial_downloads_of_python_are_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, all) = (dir.path().join("ab"), bytes());
        for (name, length) in
            [("ab.incomplete", 10), ("ab.0f0f0f0f.incomplete", 2 * PIECE_BYTES + 5), ("ac.incomplete", 20)]
        {
            fs::write(dir.path().join(name), &all[..length]).unwrap();
        }
        fs::write(dir.path().join("ab.00000000.incomplete"), vec![0; SIZE as usize + 1]).unwrap();
        assert_eq!(Part::peek(&blob, SIZE), 2 * PIECE_BYTES as u64 + 5);
        let mut part = open(&blob);
        assert_eq!(part.missing(u64::MAX), vec![2 * PIECE_BYTES as u64 + 5..SIZE; 1]);
        assert!(part.is_foreign() && open(&blob).is_foreign());
        assert!(!dir.path().join("ab.0f0f0f0f.incomplete").exists() && dir.path().join("ab.incomplete").exists());
        part.restart().unwrap();
        assert_eq!(part.missing(u64::MAX), vec![0..SIZE; 1]);
        let part = open(&blob);
        assert!(!part.is_foreign());
        let bad = part.quarantine().unwrap();
        assert!(bad.ends_with("ab.hymba-bad") && bad.exists() && !dir.path().join("ab.hymba-ranges").exists());
    }
}
