//! The texts of one request: jobs that are handed to the scheduler, as many at once as it has places, and what happens to
//! them.

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
use crate::engine::scheduler::{Event, Events, Job, Refused, Taken};

/// Where the events of one job go.
pub struct Port {
    text: usize,
    to: Sender<(usize, Event)>,
    cancel: Arc<AtomicBool>,
}

impl Port {
    /// Returns what ends the job.
    pub fn cancel(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }
}

impl Events for Port {
    fn take(&mut self, event: Event) -> Taken {
        match self.to.try_send((self.text, event)) {
            Ok(()) => Taken::Yes,
            Err(TrySendError::Full((_, event))) => Taken::Later(event),
            Err(TrySendError::Closed(_)) => Taken::Gone,
        }
    }
}

/// Makes the job of a text, whose events go to a port.
pub type Make = Box<dyn Fn(usize, Port) -> Job + Send>;

/// Texts at work. All are cancelled when this is dropped, as it is when the client leaves.
pub struct Texts {
    server: Arc<Server>,
    make: Make,
    /// Those that are not handed over yet.
    waiting: VecDeque<usize>,
    running: usize,
    events: Receiver<(usize, Event)>,
    to: Sender<(usize, Event)>,
    cancel: Arc<AtomicBool>,
}

impl Texts {
    /// Begins `count` texts. Fails if there is no place for the first of them.
    pub fn start(server: &Arc<Server>, count: usize, make: Make) -> Result<Self> {
        let places = server.scheduler.metrics().slots.max(1);
        // A client that reads slowly holds no place: there is room for all that the texts at work can say.
        let (to, events) = mpsc::channel(places.min(count).max(1) * (server.context + EVENTS_BESIDE_TOKENS));
        let (waiting, cancel) = ((0..count).collect(), Arc::default());
        let mut texts = Self { server: server.clone(), make, waiting, running: 0, events, to, cancel };
        if let Err(refused) = texts.submit() {
            return Err(match refused {
                Refused::Full(after) => ApiError::busy(after),
                Refused::Stopping => ApiError::draining(),
            });
        }
        while texts.running < places && matches!(texts.submit(), Ok(true)) {}
        Ok(texts)
    }

    /// Hands the next text over; returns whether there was one.
    fn submit(&mut self) -> std::result::Result<bool, Refused> {
        let Some(&text) = self.waiting.front() else { return Ok(false) };
        let port = Port { text, to: self.to.clone(), cancel: self.cancel.clone() };
        self.server.scheduler.submit((self.make)(text, port))?;
        self.waiting.pop_front();
        self.running += 1;
        Ok(true)
    }

    /// Returns what happens next, and to which text; `None` once all are over.
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
            let _ = self.submit(); // it is tried again when another has ended
        }
        Some((text, event))
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Events of a job that are not tokens of its answer: its start and end, and passes over its prompt.
const EVENTS_BESIDE_TOKENS: usize = 64;
/// Time until a text of a request with many is tried again.
const RETRY: Duration = Duration::from_millis(20);
