//! Compiles constraints within limits of time and memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use llguidance::{
    Matcher, ParserFactory,
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
    bounded(cancel, move || {
        let mut matcher = Matcher::new(factory.create_parser(grammar));
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
        Ok(ValidationResult::Error(why)) => Some(why),
        Ok(_) => None,
        Err(panic) => Some(panic),
    }
}

/// Number of compile threads, including abandoned ones.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Maximum number of compile threads: abandoned ones still use time and memory until they reach the limits.
const AT_ONCE: usize = 8;

/// Counts a thread as running until it is dropped.
struct Running;

impl Running {
    fn begin() -> Option<Self> {
        let begun =
            RUNNING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < AT_ONCE).then_some(count + 1));
        begun.ok().map(|_| Self)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread with a large stack and returns its result.
pub(super) fn bounded<T: Send + 'static>(
    cancel: &AtomicBool,
    work: impl FnOnce() -> std::result::Result<T, Refusal> + Send + 'static,
) -> Result<std::result::Result<T, Refusal>> {
    let running = Running::begin()
        .ok_or_else(|| Error::Request("too many constraints are being compiled; try again later".into()))?;
    let work = move || {
        let _running = running;
        foreign::call(work).unwrap_or_else(Err)
    };
    let done = threads::bounded(cancel, STACK, PATIENCE, work)?;
    let slow = || Error::Constraint { place: None, what: "it takes too long to compile; simplify it".into() };
    done.ok_or_else(slow)
}
