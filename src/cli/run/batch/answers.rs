//! The output file of a batch: one JSON object per line, in the order of the prompts. Existing answers are kept, so
//! that an interrupted run can be resumed.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::cli::json::JSON_VERSION;

/// Maximum time until a line is flushed to disk, which a power failure may lose.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// An existing answer.
#[derive(Deserialize)]
pub struct Answered {
    /// The line number of the prompt.
    pub line: usize,
    /// The hash of that line.
    pub input_hash: String,
    error: Option<IgnoredAny>,
}

impl Answered {
    pub fn is_error(&self) -> bool {
        self.error.is_some()
    }
}

/// The output file, to which whole lines are appended.
pub struct Answers {
    file: File,
    path: PathBuf,
    synced: Instant,
}

impl Answers {
    /// Opens or creates the file at `path`, and returns its answers. A truncated last line is removed. A file with
    /// other contents is rejected.
    pub fn open(path: &Path) -> anyhow::Result<(Self, Vec<Answered>)> {
        let name = path.display();
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).with_context(|| format!("cannot write {name}"))?;
        if !file.metadata().with_context(|| format!("cannot read {name}"))?.is_file() {
            bail!("{name} is not a regular file; use one for the answers");
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!("{name}: another process writes answers to it; wait for it"),
            Err(TryLockError::Error(_)) | Ok(()) => {} // some file systems do not support locks
        }
        let mut answers = Self { file, path: path.into(), synced: Instant::now() };
        let found = answers.read()?;
        Ok((answers, found))
    }

    fn read(&mut self) -> anyhow::Result<Vec<Answered>> {
        let name = self.path.display();
        let (mut found, mut complete) = (Vec::new(), 0);
        let mut lines = BufReader::new(&self.file);
        loop {
            let mut line = Vec::new();
            let bytes = lines.read_until(b'\n', &mut line).with_context(|| format!("cannot read {name}"))?;
            let number = found.len() + 1;
            let foreign = || format!("{name}: line {number} is not an answer of `run --batch`; name another file");
            if line.ends_with(b"\n") {
                found.push(serde_json::from_slice(&line).with_context(foreign)?);
                complete += bytes as u64;
                continue;
            }
            // The start of every line, of which only a part may have been written.
            let start = format!("{{\"version\":{JSON_VERSION},\"line\":");
            let common = bytes.min(start.len());
            if line[..common] != start.as_bytes()[..common] {
                bail!(foreign());
            }
            if bytes > 0 {
                self.file.set_len(complete).with_context(|| format!("cannot write {name}"))?;
            }
            return Ok(found);
        }
    }

    /// Appends an answer.
    pub fn add(&mut self, answer: &Value) -> anyhow::Result<()> {
        let line = format!("{answer}\n");
        let mut written = self.file.write_all(line.as_bytes());
        if self.synced.elapsed() > SYNC_INTERVAL {
            written = written.and_then(|()| self.sync());
        }
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Flushes everything to disk.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.sync().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.synced = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn answer(line: usize) -> Value {
        json!({ "version": JSON_VERSION, "line": line, "text": "a\nb", "input_hash": "0" })
    }

    #[test]
    fn truncated_lines_are_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let (mut answers, found) = Answers::open(&path).unwrap();
        assert!(found.is_empty() && Answers::open(&path).is_err_and(|e| e.to_string().contains("another process")));
        (1..=3).for_each(|line| answers.add(&answer(line)).unwrap());
        answers.finish().unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut answers, found) = Answers::open(&path).unwrap();
            let numbers: Vec<_> = found.iter().map(|found| found.line).collect();
            assert_eq!(numbers, (1..=3).take(numbers.len()).collect::<Vec<_>>());
            (numbers.len() + 1..=3).for_each(|line| answers.add(&answer(line)).unwrap());
            assert!(fs::read(&path).unwrap() == whole, "cut at {cut}");
        }
    }

    #[test]
    fn files_with_other_contents_are_not_modified() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for other in ["a text", "{}\n", "GGUF", "{\"version\":1,\"prompt\":\"a\"}", "\n", "{\"line\":1}\n"] {
            fs::write(&path, other).unwrap();
            let message = Answers::open(&path).err().unwrap().to_string();
            assert!(message.contains("line 1 is not an answer of `run --batch`"), "{other}: {message}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
        assert!(Answers::open(folder.path()).is_err());
    }
}
