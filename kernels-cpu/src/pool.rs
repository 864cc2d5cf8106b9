//! Threads for work measured in microseconds. A token takes several hundred operations, each split over all threads;
//! waking a general pool for each would cost more than the work. Here the workers spin for a moment after an
//! operation, so that the next one starts within a cache miss, and sleep when nothing follows.
//!
//! One thread at a time hands out work: it publishes a job, takes tasks from it like the workers do, and returns when
//! all tasks are done. Every thread has a range of neighbouring tasks of its own, so that it walks through memory in one
//! direction and touches no line that others write; when that is done it helps the others, so that a thread that the
//! system delays holds up no one.

use std::{
    hint,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a worker looks for the next job before it sleeps: longer than sampling takes between two tokens.
const SPIN: Duration = Duration::from_micros(500);
/// Looks at the job word between two looks at the clock.
const LOOKS: u32 = 64;

/// A task: `(task, thread)`; the thread's number is below [`Pool::threads`].
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A thread's range of the present job, in cache lines of its own: job number in the upper 32 bits, next task in the
/// lower. A job whose next task is [`CLOSED`] takes no more.
#[repr(align(128))]
struct Word(AtomicU64);

#[derive(Default)]
struct Shared {
    /// One a thread.
    words: Vec<Word>,
    /// Where the job's closure is (a `Task`), how many tasks it has, how many are done.
    closure: AtomicPtr<()>,
    tasks: AtomicUsize,
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

const CLOSED: u64 = u32::MAX as u64;

/// The first task of `thread`'s range.
fn begin(tasks: usize, thread: usize, threads: usize) -> usize {
    tasks * thread / threads
}

impl Shared {
    /// Runs tasks of job `job` until none is left: first the thread's own, then the others'.
    fn work(&self, job: u64, thread: usize) {
        let threads = self.words.len();
        // The closure and the number of tasks are those of `job` whenever the exchange below succeeds: the publisher
        // closes a job, which changes its words, before it writes the next one's fields; who sees the fields sees that.
        let closure = self.closure.load(Acquire).cast::<Task<'_>>();
        let tasks = self.tasks.load(Acquire);
        let mut done = 0;
        for i in 0..threads {
            let owner = (thread + i) % threads;
            let end = begin(tasks, owner + 1, threads) as u64;
            loop {
                let word = self.words[owner].0.load(Acquire);
                let task = word & CLOSED;
                if word >> 32 != job || task == CLOSED || task >= end {
                    break;
                }
                if self.words[owner].0.compare_exchange(word, word + 1, AcqRel, Relaxed).is_err() {
                    continue;
                }
                // SAFETY: `Pool::run` published the address of its reference with this job. It does not return before
                // `done` has counted this task, so that reference and closure are alive.
                let closure = unsafe { *closure };
                let call = std::panic::AssertUnwindSafe(|| closure(task as usize, thread));
                if std::panic::catch_unwind(call).is_err() {
                    self.panicked.store(true, Relaxed);
                }
                done += 1;
            }
        }
        if done > 0 {
            self.done.fetch_add(done, Release);
        }
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        let job = || self.words[thread].0.load(Acquire) >> 32;
        loop {
            let start = Instant::now();
            'spin: loop {
                for _ in 0..LOOKS {
                    if job() != seen {
                        break 'spin;
                    }
                    hint::spin_loop();
                }
                if start.elapsed() > SPIN {
                    let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                    self.sleepers.fetch_add(1, SeqCst);
                    while self.words[thread].0.load(SeqCst) >> 32 == seen && !self.stop.load(SeqCst) {
                        guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                    }
                    self.sleepers.fetch_sub(1, SeqCst);
                    break 'spin;
                }
                thread::yield_now(); // with more threads than cores, let one with work run
            }
            if self.stop.load(Relaxed) {
                return;
            }
            seen = job();
            self.work(seen, thread);
        }
    }

    /// Sets every thread's word, the callers' own last.
    fn publish(&self, job: u64, next: impl Fn(usize) -> u64) {
        for (thread, word) in self.words.iter().enumerate().rev() {
            word.0.store(job << 32 | next(thread), SeqCst);
        }
    }
}

/// A fixed set of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The present job's number: it fits 32 bits.
    job: u64,
    /// How long the caller has waited for the others, if that is measured.
    waited: Option<Duration>,
}

impl Pool {
    /// A pool of `threads` threads; the one that calls [`Pool::run`] is the first of them.
    pub fn new(threads: NonZeroUsize) -> Self {
        let words = (0..threads.get()).map(|_| Word(AtomicU64::new(CLOSED))).collect();
        let shared = Arc::new(Shared { words, ..Shared::default() });
        let workers = (1..threads.get())
            .map_while(|thread| {
                let shared = shared.clone();
                // A system that refuses more threads gets by with fewer: the others take over their ranges.
                thread::Builder::new().name(format!("hymba-{thread}")).spawn(move || shared.serve(thread)).ok()
            })
            .collect();
        Self { shared, workers, job: 0, waited: None }
    }

    /// Threads that take part in a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Of a job of `tasks`, those that `thread` takes first, one after the other.
    pub fn own(&self, tasks: usize, thread: usize) -> Range<usize> {
        begin(tasks, thread, self.threads())..begin(tasks, thread + 1, self.threads())
    }

    /// Starts, or ends, measuring how long the caller waits for the others at the end of jobs.
    pub fn measure_waiting(&mut self, on: bool) {
        self.waited = on.then_some(Duration::ZERO);
    }

    /// How long the caller has waited, since the measuring began.
    pub fn waited(&self) -> Duration {
        self.waited.unwrap_or_default()
    }

    /// Runs `f(task, thread)` once for every task below `tasks`, and returns when all are done.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&mut self, tasks: usize, f: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|task| f(task, 0));
            return;
        }
        assert!((tasks as u64) < CLOSED, "{tasks} tasks are too many for one job");
        let (shared, threads) = (&*self.shared, self.shared.words.len());
        let closure: Task<'_> = &f;
        // The last job is closed (see below), so that nobody acts on these fields before the words change.
        shared.closure.store((&raw const closure).cast_mut().cast(), Release);
        shared.tasks.store(tasks, Release);
        shared.done.store(0, Relaxed);
        self.job = (self.job + 1) & CLOSED;
        shared.publish(self.job, |thread| begin(tasks, thread, threads) as u64);
        if shared.sleepers.load(SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.work(self.job, 0);
        let mut looks = 0u32;
        let start = self.waited.map(|_| Instant::now());
        while shared.done.load(Acquire) < tasks {
            looks += 1;
            if looks.is_multiple_of(1 << 12) { thread::yield_now() } else { hint::spin_loop() }
        }
        shared.publish(self.job, |_| CLOSED);
        if let (Some(waited), Some(start)) = (&mut self.waited, start) {
            *waited += start.elapsed();
        }
        assert!(!shared.panicked.swap(false, Relaxed), "a task panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        // A change of the words ends the spinning; the lock orders the change before a sleeper's look.
        let guard = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.publish((self.job + 1) & CLOSED, |_| CLOSED);
        drop(guard);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker's panic was reported by `run`
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(NonZeroUsize::new(threads).unwrap());
            for tasks in (0..40).chain([1000]) {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, thread| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn jobs_after_sleep_and_in_quick_succession() {
        let mut pool = Pool::new(NonZeroUsize::new(4).unwrap());
        for round in 0..20 {
            if round % 5 == 0 {
                thread::sleep(4 * SPIN);
            }
            let (sum, jobs) = (AtomicUsize::new(0), if cfg!(miri) { 5 } else { 500 });
            for _ in 0..jobs {
                pool.run(7, |task, _| {
                    sum.fetch_add(task, Relaxed);
                });
            }
            assert_eq!(sum.into_inner(), jobs * 21);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(NonZeroUsize::new(2).unwrap());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, |task, _| assert!(task != 5, "expected by the test"));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, |task, _| {
            sum.fetch_add(task, Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
