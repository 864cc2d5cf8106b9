//! Continuous batching: one thread owns the model and runs all sequences in common passes. The result of each is
//! bit-identical to running it alone.
//!
//! A pass decodes one token of every generating sequence and prefills parts of waiting prompts, as much as keeps the
//! others near their usual pace. Passes without a prompt also verify draft tokens, as many as increase the throughput of
//! all sequences together. Jobs arrive through a bounded queue; their [`Events`] never block.

mod choice;
mod inbox;
mod job;
mod options;
mod prefill_budget;
mod running;
mod worker;

use std::{
    sync::{Arc, mpsc::sync_channel},
    thread::{Builder, JoinHandle},
};

use inbox::{Inbox, Stage};
pub use job::{Cached, Delivery, Event, Events, Job, Logprobs, Metrics, Refused, Usage};
pub use options::SchedulerOptions;
use worker::Worker;

use super::Model;
use crate::{Error, Result, text::Tokenizer};

/// A thread that runs jobs.
pub struct Scheduler {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    context: usize,
    fallback: Option<String>,
}

impl Scheduler {
    /// Starts the thread and returns once it accepts jobs.
    pub fn start(model: Arc<Model>, tokenizer: Arc<Tokenizer>, options: &SchedulerOptions) -> Result<Self> {
        let slots = options.slots.max(1);
        let inbox = Arc::new(Inbox::new(options.queue, slots));
        let options = SchedulerOptions { slots, ..options.clone() };
        let (send, opened) = sync_channel(1);
        let work = {
            let inbox = inbox.clone();
            move || {
                // However the thread ends, later callers must not wait for it.
                let _close = CloseOnDrop(&inbox);
                match Worker::new(&model, &tokenizer, &inbox, options) {
                    Ok(mut worker) => {
                        let _ = send.send(Ok((worker.context(), worker.fallback())));
                        worker.run();
                    }
                    Err(e) => drop(send.send(Err(e))),
                }
            }
        };
        let started = Builder::new().name("model".into()).spawn(work);
        let thread = started.map_err(|e| Error::io("cannot start", "a thread", e))?;
        let ended = |_| Err(Error::Request("the thread that runs the model has ended".into()));
        let (context, fallback) = opened.recv().unwrap_or_else(ended)?;
        Ok(Self { inbox, thread: Some(thread), context, fallback })
    }

    /// Enqueues a job, or returns why it was rejected. The job's events report its progress.
    pub fn submit(&self, job: Job) -> std::result::Result<(), Refused> {
        self.inbox.submit(job)
    }

    /// Returns the current metrics.
    pub fn metrics(&self) -> Metrics {
        self.inbox.lock().snapshot()
    }

    /// Returns the context size of each sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns why the session differs from what was requested, if it does: the preferred GPU failed, or the KV cache
    /// has a wider type.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Rejects new jobs and finishes the others.
    pub fn drain(&self) {
        self.inbox.advance(Stage::Draining);
    }

    /// Rejects new jobs and cancels the others.
    pub fn stop(&self) {
        self.inbox.advance(Stage::Cancelled);
    }

    /// Whether the thread has ended. After [`Scheduler::drain`] or [`Scheduler::stop`] it ends with the last job.
    pub fn is_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the last job after [`Scheduler::drain`] or [`Scheduler::stop`]. Returns whether the thread ended
    /// normally.
    pub fn join(mut self) -> bool {
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop();
            let _ = thread.join();
        }
    }
}

/// Shuts down the inbox when dropped; remaining jobs are dropped with their events.
struct CloseOnDrop<'a>(&'a Inbox);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.advance(Stage::Cancelled);
        self.0.lock().queue.clear();
    }
}
