//! The texts of a request: jobs that are submitted to the scheduler, as many at once as it has slots, and their events.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, Receiver, Sender, error::TrySendError},
    time::sleep,
};

use super::{
    Server,
    error::{ApiError, Result},
};
use crate::engine::scheduler::{Delivery, Event, Events, Job, Refused};

/// The event channel of a job.
pub struct Port {
    text: usize,
    sender: Sender<(usize, Event)>,
    cancel: Arc<AtomicBool>,
}

impl Port {
    /// Returns the flag that cancels the job.
    pub fn cancel(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }
}

impl Events for Port {
    fn deliver(&mut self, event: Event) -> Delivery {
        match self.sender.try_send((self.text, event)) {
            Ok(()) => Delivery::Delivered,
            Err(TrySendError::Full((_, event))) => Delivery::Full(event),
            Err(TrySendError::Closed(_)) => Delivery::Closed,
        }
    }
}

/// Creates the job for a text; its events go to the port.
pub type MakeJob = Box<dyn Fn(usize, Port) -> Job + Send>;

/// The texts of a request. Dropping them, for instance when the client disconnects, cancels all.
pub struct Texts {
    server: Arc<Server>,
    make_job: MakeJob,
    /// Texts that are not submitted yet.
    waiting: VecDeque<usize>,
    running: usize,
    events: Receiver<(usize, Event)>,
    sender: Sender<(usize, Event)>,
    cancel: Arc<AtomicBool>,
}

impl Texts {
    /// Starts `count` texts. Fails if the scheduler rejects the first one.
    pub fn start(server: &Arc<Server>, count: usize, make_job: MakeJob) -> Result<Self> {
        let slots = server.scheduler.metrics().slots.max(1);
        // The channel holds all events of the running texts, so that a slow client does not block a slot.
        let (sender, events) = mpsc::channel(slots.min(count).max(1) * (server.context + NON_TOKEN_EVENTS));
        let (waiting, cancel) = ((0..count).collect(), Arc::default());
        let mut texts = Self { server: server.clone(), make_job, waiting, running: 0, events, sender, cancel };
        if let Err(refused) = texts.submit() {
            return Err(match refused {
                Refused::Full(after) => ApiError::busy(after),
                Refused::Stopping => ApiError::draining(),
            });
        }
        while texts.running < slots && matches!(texts.submit(), Ok(true)) {}
        Ok(texts)
    }

    /// Submits the next text; returns whether there was one.
    fn submit(&mut self) -> std::result::Result<bool, Refused> {
        let Some(&text) = self.waiting.front() else { return Ok(false) };
        let port = Port { text, sender: self.sender.clone(), cancel: self.cancel.clone() };
        self.server.scheduler.submit((self.make_job)(text, port))?;
        self.waiting.pop_front();
        self.running += 1;
        Ok(true)
    }

    /// Returns the next event and its text; `None` after the last one.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        while self.running == 0 && !self.waiting.is_empty() {
            match self.submit() {
                Err(Refused::Full(_)) => sleep(RETRY).await,
                Err(Refused::Stopping) => {
                    return self.waiting.pop_front().map(|text| (text, Event::Failed(crate::Error::Cancelled)));
                }
                Ok(_) => {}
            }
        }
        if self.running == 0 {
            return None;
        }
        let (text, event) = self.events.recv().await?;
        if matches!(event, Event::Done { .. } | Event::Failed(_)) {
            self.running -= 1;
            let _ = self.submit(); // retried when another text ends
        }
        Some((text, event))
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Maximum number of events of a job apart from tokens: start, end, and passes over its prompt.
const NON_TOKEN_EVENTS: usize = 64;
/// Interval between attempts to submit a text of a request.
const RETRY: Duration = Duration::from_millis(20);
