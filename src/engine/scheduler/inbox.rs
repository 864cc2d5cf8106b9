//! The state that the scheduler's thread shares with its callers: queue, shutdown, metrics.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Job, Metrics, Refused};

/// A job and its time of arrival.
pub(super) struct Queued {
    pub job: Job,
    pub since: Instant,
}

/// The stages of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Accepts jobs.
    Accepting,
    /// Rejects new jobs and finishes the others.
    Draining,
    /// Has cancelled all jobs.
    Cancelled,
}

/// The shared state.
pub(super) struct Inbox {
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// The state guarded by the lock.
pub(super) struct Shared {
    pub queue: VecDeque<Queued>,
    /// Capacity of the queue.
    capacity: usize,
    pub stage: Stage,
    /// The cancellation flags of the running jobs.
    pub running: Vec<Arc<AtomicBool>>,
    pub metrics: Metrics,
    /// Running mean of the time that jobs take.
    pub mean_duration: Duration,
}

impl Inbox {
    /// Returns an inbox with a queue of `capacity` jobs.
    pub fn new(capacity: usize, slots: usize) -> Self {
        let metrics = Metrics { slots, ..Metrics::default() };
        let (queue, running) = (VecDeque::new(), Vec::new());
        let shared =
            Shared { queue, capacity, stage: Stage::Accepting, running, metrics, mean_duration: Duration::ZERO };
        Self { shared: Mutex::new(shared), changed: Condvar::new() }
    }

    /// Locks the state. A panic elsewhere cannot leave it inconsistent.
    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues a job, or returns why it was rejected.
    pub fn submit(&self, job: Job) -> Result<(), Refused> {
        let mut shared = self.lock();
        if shared.stage > Stage::Accepting {
            return Err(Refused::Stopping);
        }
        // Free slots count as room, since a job for one leaves the queue at once.
        let free = shared.metrics.slots.saturating_sub(shared.running.len());
        if shared.queue.len() >= shared.capacity + free {
            shared.metrics.refused += 1;
            return Err(Refused::Full(shared.retry_after()));
        }
        shared.queue.push_back(Queued { job, since: Instant::now() });
        self.changed.notify_one();
        Ok(())
    }

    /// Advances the shutdown to the given stage.
    pub fn advance(&self, stage: Stage) {
        let mut shared = self.lock();
        shared.stage = shared.stage.max(stage);
        if stage == Stage::Cancelled {
            let queued = shared.queue.iter().map(|queued| &queued.job.cancel);
            shared.running.iter().chain(queued).for_each(|cancel| cancel.store(true, Ordering::Relaxed));
        }
        self.changed.notify_one();
    }

    /// Waits until a job arrives or a shutdown begins, at most for `limit`.
    pub fn wait(&self, limit: Option<Duration>) {
        let idle = |shared: &mut Shared| shared.queue.is_empty() && shared.stage == Stage::Accepting;
        let shared = self.lock();
        match limit {
            None => drop(self.changed.wait_while(shared, idle)),
            Some(limit) => drop(self.changed.wait_timeout(shared, limit)),
        }
    }
}

impl Shared {
    /// Dequeues the oldest job of the owner with the fewest running jobs.
    pub fn next(&mut self, running_jobs: impl Fn(&str) -> usize) -> Option<Queued> {
        let next = (0..self.queue.len()).min_by_key(|&i| running_jobs(&self.queue[i].job.owner))?;
        self.queue.remove(next)
    }

    /// Returns the current metrics.
    pub fn snapshot(&self) -> Metrics {
        Metrics { queued: self.queue.len(), running: self.running.len(), ..self.metrics }
    }

    /// Estimates when the queue has room.
    fn retry_after(&self) -> Duration {
        let slots = self.metrics.slots.max(1) as u32;
        (self.mean_duration / slots).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn job(owner: &str, seed: u64) -> Job {
        Job { owner: owner.into(), seed, ..Job::new(vec![1], Box::new(sync_channel(1).0)) }
    }

    #[test]
    fn full_and_draining_queues_reject_jobs() {
        let inbox = Inbox::new(1, 1);
        for _ in 0..2 {
            inbox.submit(job("", 0)).unwrap();
        }
        assert_eq!(inbox.submit(job("", 0)), Err(Refused::Full(Duration::from_secs(1))));
        inbox.lock().running.push(Arc::default());
        inbox.lock().queue.pop_front();
        assert!(matches!(inbox.submit(job("", 0)), Err(Refused::Full(_))), "the slot is taken");
        assert_eq!(inbox.lock().metrics.refused, 2);
        inbox.advance(Stage::Draining);
        assert_eq!(inbox.submit(job("", 0)), Err(Refused::Stopping));
        assert!(!inbox.lock().running[0].load(Ordering::Relaxed));
        inbox.advance(Stage::Cancelled);
        assert!(inbox.lock().running[0].load(Ordering::Relaxed));
        assert!(inbox.lock().queue[0].job.cancel.load(Ordering::Relaxed));
        inbox.advance(Stage::Draining);
        assert_eq!(inbox.lock().stage, Stage::Cancelled);
    }

    #[test]
    fn owners_take_turns() {
        let inbox = Inbox::new(9, 1);
        for (owner, seed) in [("a", 0), ("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
            inbox.submit(job(owner, seed)).unwrap();
        }
        let mut running_jobs: Vec<String> = Vec::new();
        let mut order = Vec::new();
        while let Some(next) = inbox.lock().next(|owner| running_jobs.iter().filter(|&other| other == owner).count()) {
            running_jobs.push(next.job.owner);
            order.push(next.job.seed);
        }
        assert_eq!(order, [0, 2, 1, 4, 3]);
    }
}
