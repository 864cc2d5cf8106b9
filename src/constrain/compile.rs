//! Compiles constraints within limits of time and memory.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use llguidance::{
    CancellationHandle, Matcher, ParserFactory,
    api::{GrammarInit, ParserLimits, TopLevelGrammar, ValidationResult},
};

use crate::{Error, Result, foreign, threads};

/// Stack size of the compile thread, for schemas with deep reference chains. Only the used part takes memory.
const STACK: usize = 128 << 20;
/// Compile timeout, for anything that the limits below do not catch.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Limits for llguidance, lower than its defaults, which allow hundreds of megabytes.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        initial_lexer_fuel: 300_000,
        step_lexer_fuel: 80_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A compile error of llguidance.
pub(super) type Refusal = String;

/// Compiles `grammar`; `cancel` stops waiting for the result.
pub(super) fn compile(
    factory: &Arc<ParserFactory>,
    grammar: TopLevelGrammar,
    cancel: &AtomicBool,
) -> Result<std::result::Result<Matcher, Refusal>> {
    let factory = factory.clone();
    bounded(cancel, move |waiting| {
        let mut parser = factory.create_parser(grammar).map_err(|e| e.to_string())?;
        waiting.cancel_at_end(parser.enable_cancellation());
        let mut matcher = Matcher::new(Ok(parser));
        // A grammar without any matching text is only detected by computing a mask.
        match matcher.is_stopped() || matcher.compute_mask().is_ok() {
            true if !matcher.is_error() => Ok(matcher),
            _ => Err(matcher.get_error().unwrap_or_default()),
        }
    })
}

/// Returns why `grammar` cannot be compiled, as far as that is known without the vocabulary.
pub(super) fn refusal(grammar: TopLevelGrammar) -> Option<Refusal> {
    let checked = foreign::call(|| GrammarInit::Serialized(grammar).validate(None, limits()));
    match checked {
        Ok(ValidationResult::Error(reason)) => Some(reason),
        Ok(_) => None,
        Err(panic) => Some(panic),
    }
}

/// Maximum number of compile threads: abandoned ones still use time and memory until they reach the limits.
const MAX_THREADS: usize = 8;
/// Compile threads of this process.
static RUNNING: Running = Running::new(MAX_THREADS);

/// Counts compile threads, including abandoned ones.
struct Running {
    count: AtomicUsize,
    max: usize,
}

/// Counts as a thread until it is dropped.
struct Permit(&'static Running);

impl Running {
    const fn new(max: usize) -> Self {
        Self { count: AtomicUsize::new(0), max }
    }

    fn try_acquire(&'static self) -> Option<Permit> {
        let one_more = |count| (count < self.max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Permit(self))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a caller still waits for the result of a compile thread.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<(AtomicBool, OnceLock<CancellationHandle>)>);

impl Waiting {
    /// Whether no caller waits any more.
    pub fn is_over(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Makes the end of waiting cancel the work of `handle`.
    fn cancel_at_end(&self, handle: CancellationHandle) {
        let handle = self.0.1.get_or_init(|| handle);
        if self.is_over() {
            handle.cancel();
        }
    }

    fn end(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        if let Some(handle) = self.0.1.get() {
            handle.cancel();
        }
    }
}

/// Runs `work` on a thread with a large stack and returns its result.
pub(super) fn bounded<T: Send + 'static>(
    cancel: &AtomicBool,
    work: impl FnOnce(&Waiting) -> std::result::Result<T, Refusal> + Send + 'static,
) -> Result<std::result::Result<T, Refusal>> {
    bounded_by(&RUNNING, PATIENCE, cancel, work)
}

fn bounded_by<T: Send + 'static>(
    running: &'static Running,
    patience: Duration,
    cancel: &AtomicBool,
    work: impl FnOnce(&Waiting) -> std::result::Result<T, Refusal> + Send + 'static,
) -> Result<std::result::Result<T, Refusal>> {
    let permit =
        running.try_acquire().ok_or(Error::Busy("too many constraints are being compiled; try again later"))?;
    let waiting = Waiting::default();
    let still = waiting.clone();
    let work = move || {
        let _permit = permit;
        foreign::call(|| work(&still)).unwrap_or_else(Err)
    };
    match threads::bounded(cancel, STACK, patience, work) {
        Ok(Some(done)) => Ok(done),
        other => {
            waiting.end();
            other?;
            Err(Error::Constraint { location: None, problem: "it takes too long to compile; simplify it".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn abandoned_threads_are_counted_until_they_end() {
        static FEW: Running = Running::new(3);
        let (no_cancel, now) = (AtomicBool::new(false), Duration::from_millis(1));
        let (ended, outcomes) = mpsc::channel();
        let mut gates = Vec::new();
        let mut start = |patience| {
            let (gate, closed) = mpsc::channel::<()>();
            gates.push(gate);
            let ended = ended.clone();
            bounded_by(&FEW, patience, &no_cancel, move |waiting: &Waiting| {
                let _ = closed.recv();
                let _ = ended.send(waiting.is_over());
                Ok(())
            })
        };
        for _ in 0..3 {
            assert!(matches!(start(now), Err(Error::Constraint { problem, .. }) if problem.contains("too long")));
        }
        for _ in 0..20 {
            assert!(matches!(start(now), Err(Error::Busy(_))), "the number of threads is limited");
        }
        assert_eq!(FEW.count.load(Ordering::Relaxed), 3);
        gates.clear();
        for _ in 0..3 {
            assert!(outcomes.recv().unwrap(), "the work can see that nobody waits");
        }
        while FEW.count.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        assert!(bounded_by(&FEW, Duration::from_secs(60), &no_cancel, |_| Ok(5)).unwrap() == Ok(5));
        // a panic releases the permit too
        let failed =
            bounded_by(&FEW, Duration::from_secs(60), &no_cancel, |_| -> std::result::Result<(), _> { panic!("no") });
        assert_eq!(failed.unwrap(), Err("no".into()));
    }

    #[test]
    fn ending_the_wait_cancels_the_compilation() {
        for is_late in [false, true] {
            let (waiting, handle) = (Waiting::default(), CancellationHandle::default());
            if is_late {
                waiting.end();
            }
            waiting.cancel_at_end(handle.clone());
            assert_eq!(handle.is_cancelled(), is_late);
            waiting.end();
            assert!(handle.is_cancelled());
        }
    }
}
