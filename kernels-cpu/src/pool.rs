//! Threads for work measured in microseconds. A token takes several hundred operations, each split over all threads;
//! waking a general pool for each would cost more than the work. Here the workers spin for a moment after an
//! operation, so that the next one starts within a cache miss, and sleep when nothing follows.
//!
//! One thread at a time hands out work: it publishes a job, takes tasks from it like the workers do, and returns when
//! all tasks are done. Tasks are taken one by one, so that a thread that the system delays holds up no other.

use std::{
    hint,
    num::NonZeroUsize,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
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

#[derive(Default)]
struct Shared {
    /// Job number in the upper 32 bits, next task in the lower. A job whose next task is [`CLOSED`] takes no more.
    word: AtomicU64,
    /// The job's closure (a fat pointer in two halves), how many tasks it has, how many are done.
    closure: [AtomicUsize; 2],
    tasks: AtomicUsize,
    done: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

const CLOSED: u64 = u32::MAX as u64;

impl Shared {
    /// Takes and runs tasks of the job in `word` until none is left; returns the word that says so.
    fn work(&self, thread: usize) -> u64 {
        loop {
            let word = self.word.load(Acquire);
            let task = (word & CLOSED) as usize;
            let halves = [self.closure[0].load(Relaxed), self.closure[1].load(Relaxed)];
            if task as u64 == CLOSED || task >= self.tasks.load(Relaxed) {
                return word;
            }
            // The exchange succeeds only if the job is still the one whose closure was read: the publisher closes a
            // job, which changes the word, before it writes the next one's fields.
            if self.word.compare_exchange(word, word + 1, AcqRel, Relaxed).is_err() {
                continue;
            }
            // SAFETY: the two halves are those of the reference that `Pool::run` published with this job. It does not
            // return before `done` has counted this task, so that the closure is alive.
            let closure: Task<'_> = unsafe { std::mem::transmute(halves) };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| closure(task, thread)));
            if result.is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.done.fetch_add(1, Release);
        }
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let start = Instant::now();
            'spin: loop {
                for _ in 0..LOOKS {
                    if self.word.load(Acquire) != seen {
                        break 'spin;
                    }
                    hint::spin_loop();
                }
                if start.elapsed() > SPIN {
                    let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                    self.sleepers.fetch_add(1, SeqCst);
                    while self.word.load(SeqCst) == seen && !self.stop.load(SeqCst) {
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
            seen = self.work(thread);
        }
    }
}

/// A fixed set of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// How long the caller has waited for the others, if that is measured.
    waited: Option<Duration>,
}

impl Pool {
    /// A pool of `threads` threads; the one that calls [`Pool::run`] is the first of them.
    pub fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared::default());
        shared.word.store(CLOSED, Relaxed);
        let workers = (1..threads.get())
            .map_while(|thread| {
                let shared = shared.clone();
                // A system that refuses more threads gets by with fewer.
                thread::Builder::new().name(format!("hymba-{thread}")).spawn(move || shared.serve(thread)).ok()
            })
            .collect();
        Self { shared, workers, waited: None }
    }

    /// Threads that take part in a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
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
        let shared = &*self.shared;
        let closure: Task<'_> = &f;
        // SAFETY: a reference to a trait object is two machine words; they are turned back in `Shared::work`.
        let halves: [usize; 2] = unsafe { std::mem::transmute(closure) };
        // The last job is closed (see below), so that nobody acts on these fields before the word changes.
        shared.closure[0].store(halves[0], Relaxed);
        shared.closure[1].store(halves[1], Relaxed);
        shared.tasks.store(tasks, Relaxed);
        shared.done.store(0, Relaxed);
        let job = (shared.word.load(Relaxed) >> 32).wrapping_add(1);
        shared.word.store(job << 32, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.work(0);
        let mut looks = 0u32;
        let start = self.waited.map(|_| Instant::now());
        while shared.done.load(Acquire) < tasks {
            looks += 1;
            if looks.is_multiple_of(1 << 12) { thread::yield_now() } else { hint::spin_loop() }
        }
        shared.word.store(job << 32 | CLOSED, Release);
        if let (Some(waited), Some(start)) = (&mut self.waited, start) {
            *waited += start.elapsed();
        }
        assert!(!shared.panicked.swap(false, Relaxed), "a task panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        // A change of the word ends the spinning; the lock orders the change before a sleeper's look.
        let guard = self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.word.store((self.shared.word.load(Relaxed) >> 32).wrapping_add(1) << 32 | CLOSED, SeqCst);
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
            let sum = AtomicUsize::new(0);
            for _ in 0..500 {
                pool.run(7, |task, _| {
                    sum.fetch_add(task, Relaxed);
                });
            }
            assert_eq!(sum.into_inner(), 500 * 21);
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
