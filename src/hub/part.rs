//! A file on its way: its bytes in any order, and a journal of those that are there.
//!
//! The journal gets a line after each piece was written: its range, and a hash. Whatever ends the process, the next one
//! reads back what the lines claim, and goes on from what is true of it.

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

/// Bytes that a line of the journal stands for, at most: what a connection may lose when the process is killed.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// A file on its way to the name of a blob.
pub(super) struct Part {
    paths: Paths,
    file: File,
    journal: File,
    size: u64,
    ranges: Ranges,
    /// Whether some of it is what another program left, which nobody has checked.
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

/// What the journal of a file of `size` bytes begins with.
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

/// The journal's whole lines, if it is one for `size` bytes, and how long they are together.
fn read_journal(path: &Path, size: u64) -> Option<(Vec<Line>, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let whole = &text[..text.rfind('\n')? + 1];
    let lines = whole.strip_prefix(&*header(size))?.lines();
    Some((lines.filter_map(|line| Line::parse(line, size)).collect(), whole.len() as u64))
}

impl Part {
    /// Opens what was begun of `blob`, by us or by Python's client, or begins. The caller holds the blob's lock.
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
        // What a process that was killed wrote of a line goes.
        journal.set_len(length).and_then(|()| journal.seek(SeekFrom::End(0))).map_err(failed)?;
        if length == 0 {
            journal.write_all(header(size).as_bytes()).map_err(failed)?;
        }
        file.set_len(size).map_err(failed)?;
        Ok(Self { paths, file, journal, size, ranges, is_foreign })
    }

    /// How many bytes were begun of `blob`, as far as can be told without reading them.
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

    /// Where the bytes lie.
    pub fn path(&self) -> &Path {
        &self.paths.part
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.ranges.bytes()
    }

    /// What is missing, in pieces of at most `most` bytes.
    pub fn missing(&self, most: u64) -> Vec<Range<u64>> {
        self.ranges.missing(self.size, most)
    }

    /// Whether some of it is what another program left.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Stores bytes that have come, at most [`PIECE_BYTES`].
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let line = Line::new(start, bytes, false);
        let written = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(bytes));
        let written = written.and_then(|()| self.journal.write_all(line.text().as_bytes()));
        written.map_err(|e| Error::io("cannot write", &self.paths.part, e))?;
        self.ranges.insert(line.range);
        Ok(())
    }

    /// Forgets all that is there.
    pub fn restart(&mut self) -> Result<()> {
        let cleared = self.journal.set_len(0).and_then(|()| self.journal.rewind());
        let cleared = cleared.and_then(|()| self.journal.write_all(header(self.size).as_bytes()));
        cleared.map_err(|e| Error::io("cannot write", &self.paths.journal, e))?;
        self.ranges = Ranges::default();
        self.is_foreign = false;
        Ok(())
    }

    /// Gives the file, which is whole and right, the name of its blob.
    pub fn finish(self, blob: &Path) -> Result<()> {
        let failed = |e| Error::io("cannot write", blob, e);
        self.file.sync_all().map_err(failed)?;
        drop((self.file, self.journal));
        fs::rename(&self.paths.part, blob).map_err(failed)?;
        let _ = fs::remove_file(&self.paths.journal); // without its part it says nothing
        Ok(())
    }

    /// Puts a file aside that is whole and wrong, and returns where.
    pub fn quarantine(self) -> Result<PathBuf> {
        let Self { paths, file, journal, .. } = self;
        drop((file, journal));
        fs::remove_file(&paths.journal).map_err(|e| Error::io("cannot remove", &paths.journal, e))?;
        fs::rename(&paths.part, &paths.bad).map_err(|e| Error::io("cannot rename", &paths.part, e))?;
        Ok(paths.bad)
    }
}

/// What Python's client left of `blob`: `HASH.incomplete`, or with letters of its own before the suffix; the longest.
fn incomplete(blob: &Path, size: u64) -> Option<(PathBuf, u64)> {
    let hash = blob.file_name()?.to_str()?;
    let is_left = |name: &str| {
        let middle = name.strip_prefix(hash).and_then(|rest| rest.strip_suffix(".incomplete"));
        middle.is_some_and(|middle| {
            let letters = middle.strip_prefix('.').unwrap_or(middle);
            letters.len() <= 8 && letters.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    };
    let left =
        fs::read_dir(blob.parent()?).ok()?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left));
    let with_size = left.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        (meta.is_file() && (1..=size).contains(&meta.len())).then(|| (entry.path(), meta.len()))
    });
    with_size.max_by_key(|&(_, bytes)| bytes)
}

/// Makes what Python's client left a part of ours, with a journal that says so.
fn adopt_incomplete(blob: &Path, size: u64, paths: &Paths) -> Result<()> {
    let Some((left, _)) = incomplete(blob, size) else { return Ok(()) };
    let failed = |e: io::Error| Error::io("cannot read", &left, e);
    let mut reader = BufReader::with_capacity(PIECE_BYTES, File::open(&left).map_err(failed)?);
    let mut journal = header(size);
    let mut start = 0;
    loop {
        let bytes = reader.fill_buf().map_err(failed)?;
        if bytes.is_empty() {
            break;
        }
        let line = Line::new(start, bytes, true);
        let _ = journal.write_str(&line.text()); // to a string, which takes all
        let length = bytes.len();
        start = line.range.end;
        reader.consume(length);
    }
    // The journal first: without its part it says nothing, and this is done again.
    fs::write(&paths.journal, journal).map_err(|e| Error::io("cannot write", &paths.journal, e))?;
    fs::rename(&left, &paths.part).map_err(|e| Error::io("cannot rename", &left, e))
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
    fn what_was_written_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, all) = (dir.path().join("ab"), bytes());
        let mut part = open(&blob);
        part.write(PIECE_BYTES as u64, &all[PIECE_BYTES..2 * PIECE_BYTES]).unwrap();
        part.write(0, &all[..10]).unwrap();
        drop(part);
        assert_eq!(Part::peek(&blob, SIZE), PIECE_BYTES as u64 + 10);
        // A line that was cut, one of bytes that are not there, and one that is wrong.
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
    fn bytes_that_the_disk_lost_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, all) = (dir.path().join("ab"), bytes());
        let mut part = open(&blob);
        part.write(0, &all[..PIECE_BYTES]).unwrap();
        part.write(PIECE_BYTES as u64, &all[PIECE_BYTES..PIECE_BYTES + 9]).unwrap();
        part.file.seek(SeekFrom::Start(77)).and_then(|_| part.file.write_all(&[0; 9])).unwrap();
        drop(part);
        assert_eq!(open(&blob).missing(u64::MAX), [0..PIECE_BYTES as u64, PIECE_BYTES as u64 + 9..SIZE]);
        // A file of another size begins anew.
        assert_eq!(Part::open(&blob, 50, &AtomicBool::new(false)).unwrap().missing(99), vec![0..50; 1]);
    }

    #[test]
    fn what_python_left_is_taken_over() {
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
