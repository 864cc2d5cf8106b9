//! A thread pool for work measured in microseconds. A token takes several hundred operations, each split over all
//! threads, and waking the threads of a general pool for each would cost more than the work. Here the workers spin
//! briefly after an operation, so that the next one starts within a cache miss, and sleep when nothing follows.
//!
//! One thread at a time hands out work: it publishes a job, takes tasks like the workers do, and returns when all tasks
//! are done. Every thread starts with its own range of neighboring tasks, so that it walks through memory in one
//! direction and shares no cache lines; then it takes tasks from the ranges of other threads, so that a descheduled
//! thread does not delay the job.

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

/// How long a worker spins for the next job before it sleeps: longer than sampling takes between two tokens.
const SPIN: Duration = Duration::from_micros(500);
/// Number of polls of the job word between two clock readings.
const POLLS: u32 = 64;

/// A task: `(task, thread)`; the thread's number is below [`Pool::threads`].
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A thread's range of the current job, in cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Own {
    /// See [`word`].
    word: AtomicU64,
    /// Address of the job's closure (a `Task`).
    closure: AtomicPtr<()>,
}

/// Number of bits for the task in a word.
const TASK_BITS: u32 = 24;
/// Maximum number of tasks per job, and the mask of their bits.
const MAX_TASKS: usize = (1 << TASK_BITS) - 1;

/// Packs (job id, next task, end of the range) into a word. A compare-and-swap that increments `next` claims a task of the
/// current job, even if other jobs ran since the word was loaded. The id only distinguishes consecutive jobs.
fn word(job: u16, next: usize, end: usize) -> u64 {
    u64::from(job) << (2 * TASK_BITS) | (next as u64) << TASK_BITS | end as u64
}

/// Returns the job id of a word.
fn job_of(word: u64) -> u16 {
    (word >> (2 * TASK_BITS)) as u16
}

/// Returns the next task of a word, if any is left.
fn next_of(word: u64) -> Option<usize> {
    let task = |bits: u64| bits as usize & MAX_TASKS;
    (task(word >> TASK_BITS) < task(word)).then(|| task(word >> TASK_BITS))
}

#[derive(Default)]
struct Shared {
    /// One range per thread.
    own: Vec<Own>,
    /// Number of finished tasks of the job.
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// Returns the first task of `thread`'s range.
fn begin(tasks: usize, thread: usize, threads: usize) -> usize {
    tasks * thread / threads
}

impl Shared {
    /// Runs tasks of the job until none are left: first the thread's own, then the others'. `done`: number of tasks it
    /// has already run.
    fn work(&self, thread: usize, mut done: usize) {
        let threads = self.own.len();
        for i in 0..threads {
            let owner = &self.own[(thread + i) % threads];
            loop {
                let word = owner.word.load(Relaxed);
                let Some(task) = next_of(word) else { break };
                if owner.word.compare_exchange(word, word + (1 << TASK_BITS), Acquire, Relaxed).is_err() {
                    continue;
                }
                let closure = owner.closure.load(Relaxed).cast::<Task<'_>>();
                // SAFETY: `Pool::run` wrote the address of its reference before it published the word from which this
                // task was claimed. It does not return before `done` includes the task, so the reference and closure
                // are alive, and the address is not that of a later job.
                self.call(unsafe { *closure }, task, thread);
                done += 1;
            }
        }
        if done > 0 {
            self.done.fetch_add(done, Release);
        }
    }

    fn call(&self, closure: Task<'_>, task: usize, thread: usize) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| closure(task, thread))).is_err() {
            self.panicked.store(true, Relaxed);
        }
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        let job = || job_of(self.own[thread].word.load(Relaxed));
        loop {
            let start = Instant::now();
            'spin: loop {
                for _ in 0..POLLS {
                    if job() != seen {
                        break 'spin;
                    }
                    hint::spin_loop();
                }
                if start.elapsed() > SPIN {
                    let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                    self.sleepers.fetch_add(1, SeqCst);
                    while job() == seen && !self.stop.load(SeqCst) {
                        guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                    }
                    self.sleepers.fetch_sub(1, SeqCst);
                    break 'spin;
                }
                thread::yield_now(); // with more threads than cores, let another one run
            }
            if self.stop.load(Relaxed) {
                return;
            }
            seen = job();
            self.work(thread, 0);
        }
    }

    /// Publishes the tasks of a job except the first `taken`. The caller's range comes last, since it does not wait for
    /// it.
    fn publish(&self, job: u16, tasks: usize, taken: usize, closure: *mut ()) {
        for (thread, own) in self.own.iter().enumerate().rev() {
            own.closure.store(closure, Relaxed);
            let (next, end) = (begin(tasks, thread, self.own.len()), begin(tasks, thread + 1, self.own.len()));
            own.word.store(word(job, next.max(taken), end), Release);
        }
    }
}

/// A fixed set of threads, including the calling one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The current job's id.
    job: u16,
    /// How long the caller has waited for the others, if measured.
    waited: Option<Duration>,
}

impl Pool {
    /// Creates a pool of `threads` threads, including the one that calls [`Pool::run`].
    pub fn new(threads: NonZeroUsize) -> Self {
        let own = (0..threads.get()).map(|_| Own::default()).collect();
        let shared = Arc::new(Shared { own, ..Shared::default() });
        let workers = (1..threads.get())
            .map_while(|thread| {
                let shared = shared.clone();
                // If the system refuses more threads, the existing ones take over their ranges.
                thread::Builder::new().name(format!("hymba-{thread}")).spawn(move || shared.serve(thread)).ok()
            })
            .collect();
        Self { shared, workers, job: 0, waited: None }
    }

    /// Returns the number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Returns the tasks out of `tasks` that `thread` runs first, in order.
    pub fn own(&self, tasks: usize, thread: usize) -> Range<usize> {
        begin(tasks, thread, self.threads())..begin(tasks, thread + 1, self.threads())
    }

    /// Starts or stops measuring how long the caller waits for the others at the end of jobs.
    pub fn measure_waiting(&mut self, on: bool) {
        self.waited = on.then_some(Duration::ZERO);
    }

    /// Returns how long the caller has waited since measuring began.
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
        assert!(tasks <= MAX_TASKS, "{tasks} tasks are too many for one job");
        let shared = &*self.shared;
        let closure: Task<'_> = &f;
        shared.done.store(0, Relaxed);
        self.job = self.job.wrapping_add(1);
        // The caller takes the first task without a compare-and-swap, which would wait for the stores to become visible
        // to all threads.
        shared.publish(self.job, tasks, 1, (&raw const closure).cast_mut().cast());
        // A worker that falls asleep at this moment may be missed, and the job runs without it; the next job wakes it.
        // Ruling that out would take a full memory barrier in every job.
        if shared.sleepers.load(Relaxed) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.call(closure, 0, 0);
        shared.work(0, 1);
        let mut polls = 0u32;
        let start = self.waited.map(|_| Instant::now());
        while shared.done.load(Acquire) < tasks {
            polls += 1;
            if polls.is_multiple_of(1 << 12) { thread::yield_now() } else { hint::spin_loop() }
        }
        if let (Some(waited), Some(start)) = (&mut self.waited, start) {
            *waited += start.elapsed();
        }
        assert!(!shared.panicked.swap(false, Relaxed), "a task panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        // A changed word ends the spinning; the lock makes the change visible before a sleeper reads the words.
        let guard = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.publish(self.job.wrapping_add(1), 0, 0, std::ptr::null_mut());
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
