//! Compiling within limits of time and memory, whatever is asked for.

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

/// Stack for compiling: references that lead to references take some of it each. Only what is used is memory.
const STACK: usize = 128 << 20;
/// The limits below end what takes long; this is for what they do not foresee.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Limits of the crate, below its own where those would take hundreds of megabytes.
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

/// Why something can't be compiled, as the crate says it.
pub(super) type Refusal = String;

/// Compiles `grammar`; `cancel` ends the wait for it.
pub(super) fn compile(
    factory: &Arc<ParserFactory>,
    grammar: TopLevelGrammar,
    cancel: &AtomicBool,
) -> Result<std::result::Result<Matcher, Refusal>> {
    let factory = factory.clone();
    bounded(cancel, move || {
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        // The first mask finds out what is wrong with a grammar that nothing matches.
        match matcher.is_stopped() || matcher.compute_mask().is_ok() {
            true if !matcher.is_error() => Ok(matcher),
            _ => Err(matcher.get_error().unwrap_or_default()),
        }
    })
}

/// Returns why `grammar` can't be compiled, as far as that can be told without the vocabulary.
pub(super) fn refusal(grammar: TopLevelGrammar) -> Option<Refusal> {
    let checked = foreign::call(|| GrammarInit::Serialized(grammar).validate(None, limits()));
    match checked {
        Ok(ValidationResult::Error(why)) => Some(why),
        Ok(_) => None,
        Err(panic) => Some(panic),
    }
}

/// What is compiled at the moment, by those that wait for it and those that gave up.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Compiled at once at most: what nobody waits for any more still takes time and memory, until it meets the limits.
const AT_ONCE: usize = 8;

/// Counts as running while it is there.
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

/// Does `work` on a thread with room for recursion, and returns what it returns.
pub(super) fn bounded<T: Send + 'static>(
    cancel: &AtomicBool,
    work: impl FnOnce() -> std::result::Result<T, Refusal> + Send + 'static,
) -> Result<std::result::Result<T, Refusal>> {
    let running =
        Running::begin().ok_or_else(|| Error::Request("too much is being compiled; try again later".into()))?;
    let work = move || {
        let _running = running;
        foreign::call(work).unwrap_or_else(Err)
    };
    let done = threads::bounded(cancel, STACK, PATIENCE, work)?;
    let slow = || Error::Constraint { place: None, what: "it takes too long to compile; simplify it".into() };
    done.ok_or_else(slow)
}
