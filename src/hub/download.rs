//! Downloads one file to its blob in the cache over several connections, and verifies it before it gets its name.

use std::{
    collections::VecDeque,
    io::Read,
    iter,
    ops::Range,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use super::{
    Client, Info,
    client::{header, passing},
    info::Remote,
    part::{PIECE_BYTES, Part},
    retry::{Backoff, Failure},
};
use crate::{Error, Result};

/// A download event.
#[allow(missing_docs, reason = "a variant's text names its fields")]
pub enum Event<'a> {
    /// A download of a file starts, with `present` bytes already there.
    File { path: &'a str, present: u64 },
    /// Bytes were received.
    Fetched { bytes: u64 },
    /// The partial file is unusable; these bytes are downloaded again.
    Again { path: &'a str, bytes: u64 },
    /// Waiting for another process that downloads this file.
    Waiting { path: &'a str },
    /// A failure is retried after a pause.
    Retry { path: &'a str, reason: &'a str, pause: Duration },
    /// The file is complete and is being verified.
    Checking { path: &'a str },
}

/// Connections per file.
const CONNECTIONS: usize = 4;
/// Bytes per range request.
const REQUEST: Range<u64> = 4 << 20..64 << 20;
/// Maximum consecutive attempts without progress.
const ATTEMPTS: u32 = 6;

/// A download of one file.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub info: &'a Info,
    pub remote: &'a Remote,
}

/// State shared by the connections.
struct Shared {
    part: Mutex<Part>,
    queue: Mutex<VecDeque<Range<u64>>>,
    source: Mutex<Source>,
    /// Stops all of them: one failed, or the user cancelled.
    stop: AtomicBool,
}

/// The source of the bytes.
#[derive(Clone, Default)]
struct Source {
    location: String,
    /// The server's ETag, for If-Range.
    tag: Option<String>,
    /// Whether several servers with different ETags respond.
    untagged: bool,
}

/// A message from a connection.
enum Message {
    Fetched(u64),
    Retry(String, Duration),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Download<'_> {
    /// Completes `blob`, whose lock the caller holds, from the partial file and the hub.
    pub fn run(&self, blob: &Path, progress: &mut dyn FnMut(Event)) -> Result<()> {
        let Remote { path, hash, size, .. } = self.remote;
        let cancel = self.client.cancel();
        let mut part = Part::open(blob, *size, cancel)?;
        progress(Event::File { path, present: part.bytes() });
        loop {
            let was_foreign = part.is_foreign();
            part = self.fill(part, progress)?;
            progress(Event::Checking { path });
            if hash.matches(part.path(), &mut |_| (), cancel)? {
                return part.finish(blob);
            }
            if !was_foreign {
                let kept = part.quarantine()?;
                return Err(Error::Request(format!(
                    "{path}: the download does not match the hub's hash ({hash}); it was moved to {}, and the next attempt starts over",
                    kept.display()
                )));
            }
            // Another program's partial download was not a prefix of this file.
            progress(Event::Again { path, bytes: part.bytes() });
            part.restart()?;
        }
    }

    /// Downloads the missing ranges.
    fn fill(&self, part: Part, progress: &mut dyn FnMut(Event)) -> Result<Part> {
        let size = self.remote.size;
        let step = (size / 16).next_multiple_of(PIECE_BYTES as u64).clamp(REQUEST.start, REQUEST.end);
        let queue: VecDeque<_> = part.missing(step).into();
        let queue_length = queue.len();
        let shared = Shared {
            part: Mutex::new(part),
            queue: Mutex::new(queue),
            source: Mutex::new(Source { location: self.remote.location.clone(), ..Source::default() }),
            stop: AtomicBool::new(false),
        };
        let mut connections = queue_length.min(CONNECTIONS);
        let mut restarts = 0;
        loop {
            match self.connect(&shared, connections, progress) {
                Ok(()) => break,
                // Without ranges there is one connection, which must deliver the whole file.
                Err(Failure::Unranged) if restarts < ATTEMPTS => {
                    let mut part = lock(&shared.part);
                    progress(Event::Again { path: &self.remote.path, bytes: part.bytes() });
                    part.restart()?;
                }
                Err(failure) => return Err(failure.into_error(&self.remote.path)),
            }
            restarts += 1;
            connections = 1;
            *lock(&shared.queue) = iter::once(0..size).collect();
            shared.stop.store(false, Ordering::Relaxed);
        }
        let part = shared.part.into_inner().unwrap_or_else(PoisonError::into_inner);
        match part.missing(u64::MAX).first() {
            None => Ok(part),
            Some(range) => {
                Err(Error::Request(format!("{}: no data received from byte {} on", self.remote.path, range.start)))
            }
        }
    }

    /// Processes the queue with `connections` connections, and passes on their messages.
    fn connect(
        &self,
        shared: &Shared,
        connections: usize,
        progress: &mut dyn FnMut(Event),
    ) -> std::result::Result<(), Failure> {
        let path = &*self.remote.path;
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let mut workers = Vec::new();
            for _ in 0..connections {
                let sender = sender.clone();
                let work = move || {
                    let done = self.work(shared, &sender);
                    if done.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    done
                };
                match thread::Builder::new().spawn_scoped(scope, work) {
                    Ok(worker) => workers.push(worker),
                    Err(_) if !workers.is_empty() => break,
                    Err(e) => return Err(Error::Request(format!("the system allows no more threads: {e}")).into()),
                }
            }
            drop(sender);
            for message in &receiver {
                match message {
                    Message::Fetched(bytes) => progress(Event::Fetched { bytes }),
                    Message::Retry(reason, pause) => progress(Event::Retry { path, reason: &reason, pause }),
                }
            }
            let mut failed = None;
            for worker in workers {
                match worker.join() {
                    Ok(Ok(())) => (),
                    // Connections stopped by another's failure are not reported.
                    Ok(Err(failure)) if matches!(failed, None | Some(Failure::Fatal(Error::Cancelled))) => {
                        failed = Some(failure);
                    }
                    Ok(Err(_)) => (),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failed.map_or(Ok(()), Err)
        })
    }

    /// Downloads ranges from the queue until it is empty.
    fn work(&self, shared: &Shared, sender: &Sender<Message>) -> std::result::Result<(), Failure> {
        let path = &self.remote.path;
        loop {
            let next = lock(&shared.queue).pop_front();
            let Some(mut range) = next else { return Ok(()) };
            let mut backoff = Backoff::new(self.client.settings().pause, ATTEMPTS);
            while !range.is_empty() {
                let start = range.start;
                let source = lock(&shared.source).clone();
                let failure = match self.receive(&mut range, &source, shared, sender) {
                    Ok(()) => continue,
                    Err(Failure::Unranged) => return Err(Failure::Unranged),
                    Err(failure) => failure,
                };
                if range.start > start {
                    backoff.reset();
                }
                let expired = matches!(failure, Failure::Expired(_));
                let report = &mut |reason: &str, pause| drop(sender.send(Message::Retry(reason.into(), pause)));
                backoff.wait(failure, path, report, &shared.stop)?;
                if expired {
                    self.renew(shared, &source)?;
                }
            }
        }
    }

    /// Requests a new address from the hub, unless another connection has done so.
    fn renew(&self, shared: &Shared, old: &Source) -> std::result::Result<(), Failure> {
        let mut source = lock(&shared.source);
        if source.location != old.location {
            return Ok(());
        }
        match self.client.head(self.info, &self.remote.path) {
            Ok(new) if new.hash == self.remote.hash && new.size == self.remote.size => {
                *source = Source { location: new.location, ..Source::default() };
                Ok(())
            }
            Ok(_) => {
                Err(Error::Request(format!("{}: it changed on the hub during the download", self.remote.path)).into())
            }
            Err(failure @ Failure::Fatal(_)) => Err(failure),
            Err(_) => Ok(()), // the next attempt fails likewise, and counts
        }
    }

    /// Downloads bytes of `range`, advancing its start past the stored ones.
    fn receive(
        &self,
        range: &mut Range<u64>,
        source: &Source,
        shared: &Shared,
        sender: &Sender<Message>,
    ) -> std::result::Result<(), Failure> {
        let size = self.remote.size;
        let is_full = *range == (0..size);
        let wanted = format!("bytes={}-{}", range.start, range.end - 1);
        let mut headers = Vec::new();
        if !is_full {
            headers.push(("Range", &*wanted));
            headers.extend(source.tag.as_deref().map(|tag| ("If-Range", tag)));
        }
        let (mut answer, _) = self.client.follow("GET", &source.location, &headers, |_| true)?;
        let (status, get) = (answer.status(), |name| header(answer.headers(), name));
        let wrong = |problem: String| Err(Failure::Again { reason: problem, after: None });
        match status.as_u16() {
            206 if is_full => return wrong("the server sent a range for a full request".into()),
            206 => {
                let content_range = get("Content-Range").and_then(content_range);
                if content_range.is_none_or(|(start, total)| start != range.start || total != size) {
                    return wrong(format!("the server did not send the range from byte {} of {size}", range.start));
                }
            }
            200 if is_full => match get("Content-Length").and_then(|length| length.parse::<u64>().ok()) {
                Some(length) if length != size => {
                    let problem = format!("the server has {length} bytes of it, but the hub reported {size}");
                    return Err(Error::Request(format!("{}: {problem}", self.remote.path)).into());
                }
                _ => (),
            },
            // The ETag may be another server's for the same file.
            200 if source.tag.is_some() => {
                *lock(&shared.source) = Source { tag: None, untagged: true, ..source.clone() };
                return wrong("the server reports another ETag for the file".into());
            }
            200 => return Err(Failure::Unranged),
            status @ (401 | 403 | 404 | 410 | 416) => {
                return Err(Failure::Expired(format!("the server no longer serves the file (status {status})")));
            }
            other => {
                let failed = passing(status, answer.headers());
                return Err(failed.unwrap_or_else(|| Error::Request(format!("status {other}")).into()));
            }
        }
        if let Some(tag) = get("ETag").filter(|tag| tag.starts_with('"')) {
            let mut source = lock(&shared.source);
            if !source.untagged {
                source.tag.get_or_insert_with(|| tag.into());
            }
        }
        let mut body = answer.body_mut().as_reader();
        let mut bytes = Vec::with_capacity(PIECE_BYTES);
        while !range.is_empty() {
            bytes.clear();
            let max_len = (range.end - range.start).min(PIECE_BYTES as u64);
            let read = body.by_ref().take(max_len).read_to_end(&mut bytes);
            // Data received before the connection broke is valid.
            if !bytes.is_empty() {
                lock(&shared.part).write(range.start, &bytes)?;
                range.start += bytes.len() as u64;
                drop(sender.send(Message::Fetched(bytes.len() as u64)));
            }
            read.map_err(|e| self.client.broken(&e))?;
            if (bytes.len() as u64) < max_len {
                return wrong("the connection ended early".into());
            }
            if shared.stop.load(Ordering::Relaxed) || Error::check_cancelled(self.client.cancel()).is_err() {
                return Err(Error::Cancelled.into());
            }
        }
        Ok(())
    }
}

/// Parses start and total of `bytes START-END/TOTAL`.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 100)));
        for other in ["bytes */100", "bytes 5-9/*", "5-9/100", ""] {
            assert_eq!(content_range(other), None);
        }
    }
}
