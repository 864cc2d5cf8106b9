//! Retries with backoff.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Why a request failed.
pub(super) enum Failure {
    /// A retry would not help.
    Fatal(Error),
    /// A network or server failure, with a requested delay, if any.
    Again { reason: String, after: Option<Duration> },
    /// The address from a redirect has expired.
    Expired(String),
    /// The server does not support ranges.
    Unranged,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl Failure {
    /// Converts it to the error of a request that is not retried.
    pub fn into_error(self, subject: &str) -> Error {
        match self {
            Self::Fatal(error) => error,
            Self::Again { reason, .. } | Self::Expired(reason) => Error::Request(format!("{subject}: {reason}")),
            Self::Unranged => Error::Request(format!("{subject}: the server does not support ranges")),
        }
    }
}

/// Maximum pause, unless a server requests more.
const LONGEST: Duration = Duration::from_secs(30);
/// Maximum pause at a server's request.
const MAX_REQUESTED_PAUSE: Duration = Duration::from_secs(600);

/// Exponential backoff.
pub(super) struct Backoff {
    first: Duration,
    attempts: u32,
    failures: u32,
}

impl Backoff {
    /// Maximum consecutive failures.
    pub fn new(first: Duration, attempts: u32) -> Self {
        Self { first, attempts, failures: 0 }
    }

    /// Resets the count after progress.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt, or fails if there is none. `report` receives the reason and the pause; `stop`
    /// interrupts it.
    pub fn wait(
        &mut self,
        failure: Failure,
        subject: &str,
        report: &mut dyn FnMut(&str, Duration),
        stop: &AtomicBool,
    ) -> Result<()> {
        self.failures += 1;
        if self.failures >= self.attempts {
            return Err(failure.into_error(subject));
        }
        let (reason, after) = match failure {
            Failure::Again { reason, after } => (reason, after),
            Failure::Expired(reason) => (reason, None),
            other => return Err(other.into_error(subject)),
        };
        let own = self.first.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST);
        let pause = after.map_or(own, |after| after.max(own));
        if pause > MAX_REQUESTED_PAUSE {
            let minutes = pause.as_secs() / 60;
            return Err(Error::Request(format!(
                "{subject}: {reason}; the server accepts no requests for {minutes} minutes"
            )));
        }
        report(&reason, pause);
        let end = Instant::now() + pause;
        while !stop.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        Err(Error::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_attempts_are_limited() {
        let mut backoff = Backoff::new(Duration::from_millis(1), 4);
        let no = AtomicBool::new(false);
        let mut pauses = Vec::new();
        let mut fail = |backoff: &mut Backoff, after| {
            let failure = Failure::Again { reason: "it broke".into(), after };
            backoff.wait(failure, "a.bin", &mut |_, pause| pauses.push(pause.as_millis()), &no)
        };
        assert!(fail(&mut backoff, None).is_ok() && fail(&mut backoff, None).is_ok());
        backoff.reset();
        assert!(fail(&mut backoff, Some(Duration::from_millis(3))).is_ok() && fail(&mut backoff, None).is_ok());
        assert!(fail(&mut backoff, None).is_ok());
        assert_eq!(fail(&mut backoff, None).unwrap_err().to_string(), "a.bin: it broke");
        backoff.reset();
        let later = fail(&mut backoff, Some(Duration::from_secs(1200))).unwrap_err().to_string();
        assert!(later.ends_with("accepts no requests for 20 minutes"), "{later}");
        assert_eq!(pauses, [1, 2, 3, 2, 4]);
        backoff.reset();
        assert!(backoff.wait(Failure::Fatal(Error::NoTurns), "", &mut |_, _| panic!(), &no).is_err());
        let failure = Failure::Expired("it is old".into());
        assert!(matches!(backoff.wait(failure, "", &mut |_, _| (), &AtomicBool::new(true)), Err(Error::Cancelled)));
    }
}
