//! Thread pools that cope with a limit on threads, where rayon itself would panic.

use std::{
    io,
    num::NonZeroUsize,
    sync::{
        OnceLock,
        atomic::AtomicBool,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Returns a pool of `threads` threads, by default one per core, or as many as the system allows; `None` if none.
pub fn pool(threads: Option<NonZeroUsize>) -> Option<ThreadPool> {
    let cores = || thread::available_parallelism().ok();
    let wanted = threads.or_else(cores).map_or(1, NonZeroUsize::get);
    // Test first how many threads can be started: rayon needs all of them.
    let waiting: Vec<_> = (0..wanted)
        .map_while(|_| {
            let (send, receive) = mpsc::channel::<ThreadBuilder>();
            let work = move || {
                if let Ok(worker) = receive.recv() {
                    worker.run();
                }
            };
            thread::Builder::new().spawn(work).ok().map(|_| send)
        })
        .collect();
    let start = |worker: ThreadBuilder| {
        let refused = io::Error::other("a thread ended before its work");
        waiting[worker.index()].send(worker).map_err(|_| refused)
    };
    if waiting.is_empty() {
        return None;
    }
    ThreadPoolBuilder::new().num_threads(waiting.len()).spawn_handler(start).build().ok()
}

/// Runs `work` on a separate thread and returns its result; once `cancel` is set, it is abandoned.
pub fn until<T: Send + 'static>(cancel: &AtomicBool, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    wait(thread::Builder::new(), cancel, None, work)?.ok_or(Error::Cancelled)
}

/// [`until`], with a stack of so many bytes; `None` where `work` takes longer than `patience`.
pub fn bounded<T: Send + 'static>(
    cancel: &AtomicBool,
    stack: usize,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    wait(thread::Builder::new().stack_size(stack), cancel, Some(Instant::now() + patience), work)
}

fn wait<T: Send + 'static>(
    thread: thread::Builder,
    cancel: &AtomicBool,
    deadline: Option<Instant>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (send, receive) = mpsc::channel();
    let started = thread.spawn(move || send.send(work()));
    started.map_err(|_| Error::Request("the system allows this process no more threads".into()))?;
    loop {
        match receive.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Ok(None);
            }
            Err(RecvTimeoutError::Timeout) => Error::check_cancelled(cancel)?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Cancelled), // it panicked, which was reported
        }
    }
}

/// Returns this process's pool with one thread per core.
pub fn shared() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    POOL.get_or_init(|| pool(None)).as_ref()
}

/// Adds `bytes` to a hash.
pub fn hash(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    match shared() {
        Some(pool) => pool.install(|| hasher.update_rayon(bytes)),
        None => hasher.update(bytes),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_ends_the_wait() {
        assert_eq!(until(&AtomicBool::new(false), || 5).unwrap(), 5);
        let (_end, ends) = mpsc::channel::<()>();
        let never = move || ends.recv().is_ok();
        assert!(matches!(until(&AtomicBool::new(true), never), Err(Error::Cancelled)));
        let (_end, ends) = mpsc::channel::<()>();
        let never = move || ends.recv().is_ok();
        assert!(bounded(&AtomicBool::new(false), 1 << 20, Duration::from_millis(1), never).unwrap().is_none());
    }
}
