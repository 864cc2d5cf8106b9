//! Thread pools that cope with a limit on threads, where rayon itself would panic.

use std::{
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
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
pub fn cancellable<T: Send + 'static>(cancel: &AtomicBool, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    wait(thread::Builder::new(), cancel, None, work)?.ok_or(Error::Cancelled)
}

/// [`cancellable`] with a stack of `stack` bytes; `None` if `work` takes longer than `patience`. On Linux `patience` is
/// CPU time, so that a busy machine makes no difference; the elapsed time is limited to ten times as much.
pub fn bounded<T: Send + 'static>(
    cancel: &AtomicBool,
    stack: usize,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    wait(thread::Builder::new().stack_size(stack), cancel, Some(patience), work)
}

fn wait<T: Send + 'static>(
    thread: thread::Builder,
    cancel: &AtomicBool,
    patience: Option<Duration>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (start, task) = (Instant::now(), Arc::<OnceLock<PathBuf>>::default());
    let (send, receive) = mpsc::channel();
    let its_task = task.clone();
    let work = move || {
        if let Ok(path) = fs::read_link("/proc/thread-self") {
            let _ = its_task.set(Path::new("/proc").join(path));
        }
        send.send(work())
    };
    thread.spawn(work).map_err(|_| Error::Request("the system allows this process no more threads".into()))?;
    let is_over = |patience: Duration| {
        let used = || task.get().and_then(|task| cpu_time(task)).unwrap_or(Duration::MAX);
        start.elapsed() >= patience && (start.elapsed() >= patience * 10 || used() >= patience)
    };
    loop {
        match receive.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) if patience.is_some_and(is_over) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => Error::check_cancelled(cancel)?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Cancelled), // it panicked, which was reported
        }
    }
}

/// Returns the CPU time of the thread whose folder in /proc is `task`.
fn cpu_time(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("stat")).ok()?;
    // The name in brackets may contain spaces. Fields 14 and 15 are hundredths of a second in user and system mode.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
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
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn cancelling_ends_the_wait() {
        assert_eq!(cancellable(&AtomicBool::new(false), || 5).unwrap(), 5);
        let (_end, ends) = mpsc::channel::<()>();
        let never = move || ends.recv().is_ok();
        assert!(matches!(cancellable(&AtomicBool::new(true), never), Err(Error::Cancelled)));
        let (_end, ends) = mpsc::channel::<()>();
        let never = move || ends.recv().is_ok();
        assert!(bounded(&AtomicBool::new(false), 1 << 20, Duration::from_millis(1), never).unwrap().is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_machine_does_not_end_the_wait() {
        let sleep = || thread::sleep(Duration::from_millis(300));
        let done = bounded(&AtomicBool::new(false), 1 << 20, Duration::from_millis(50), sleep);
        assert!(done.unwrap().is_some(), "its CPU time is below the limit");
        let work = || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(20) && !STOP.load(Ordering::Relaxed) {}
        };
        static STOP: AtomicBool = AtomicBool::new(false);
        let done = bounded(&AtomicBool::new(false), 1 << 20, Duration::from_millis(50), work);
        assert!(done.unwrap().is_none());
        STOP.store(true, Ordering::Relaxed);
    }
}
