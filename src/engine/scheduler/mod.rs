//! Several texts at once: one thread owns the model, and reads and writes all of them in common passes. Each has the bits
//! that it has alone.
//!
//! A pass reads one token of every text that is being written, and between them a part of the prompts that are being read:
//! as much as leaves the others' tokens near their usual pace. Jobs come in through a bounded queue; what happens to them
//! goes out through their [`Events`], which never block.

mod alone;
mod choice;
mod inbox;
mod job;
mod options;
mod pace;
mod running;
mod worker;

use std::{
    sync::{Arc, mpsc::sync_channel},
    thread::{Builder, JoinHandle},
};

use inbox::{Ending, Inbox};
pub use job::{Cached, Event, Events, Job, Logprobs, Metrics, Refused, Taken, Usage};
pub use options::SchedulerOptions;
use worker::Worker;

use super::Model;
use crate::{Error, Result, text::Tokenizer};

/// A thread that reads and writes texts.
pub struct Scheduler {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    context: usize,
    fallback: Option<String>,
}

impl Scheduler {
    /// Starts the thread, and returns when it takes jobs.
    pub fn start(model: Arc<Model>, tokenizer: Arc<Tokenizer>, options: &SchedulerOptions) -> Result<Self> {
        let slots = options.slots.max(1);
        let inbox = Arc::new(Inbox::new(options.queue, slots));
        let options = SchedulerOptions { slots, ..options.clone() };
        let (send, opened) = sync_channel(1);
        let work = {
            let inbox = inbox.clone();
            move || {
                // However the thread ends: whoever comes later must not wait for it.
                let _ended = EndsInbox(&inbox);
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
        let gone = |_| Err(Error::Request("the thread that runs the model has ended".into()));
        let (context, fallback) = opened.recv().unwrap_or_else(gone)?;
        Ok(Self { inbox, thread: Some(thread), context, fallback })
    }

    /// Puts a job into the queue, or says why not. The job's events say what becomes of it.
    pub fn submit(&self, job: Job) -> std::result::Result<(), Refused> {
        self.inbox.submit(job)
    }

    /// Returns what was done so far.
    pub fn metrics(&self) -> Metrics {
        self.inbox.lock().snapshot()
    }

    /// Returns how many tokens fit into a text.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns why the texts are not as was asked for, if they are not: a GPU that was preferred does not work, the KV
    /// cache is wider.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Returns why prefix states are not written to the folder any more, if they are not.
    pub fn cache_failure(&self) -> Option<String> {
        self.inbox.lock().cache_failure.clone()
    }

    /// Takes no more jobs; those it has are finished.
    pub fn drain(&self) {
        self.inbox.end(Ending::Draining);
    }

    /// Takes no more jobs, and cancels those it has.
    pub fn stop(&self) {
        self.inbox.end(Ending::Cancelled);
    }

    /// Whether the thread has ended: after [`Scheduler::drain`] or [`Scheduler::stop`] it does when the last job is over.
    pub fn is_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the last job is over, after [`Scheduler::drain`] or [`Scheduler::stop`]. Returns whether the thread
    /// ended as it should.
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

/// Ends the inbox when it is dropped; jobs that are left are dropped with their events.
struct EndsInbox<'a>(&'a Inbox);

impl Drop for EndsInbox<'_> {
    fn drop(&mut self) {
        self.0.end(Ending::Cancelled);
        self.0.lock().queue.clear();
    }
}
