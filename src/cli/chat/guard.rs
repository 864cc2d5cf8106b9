//! A panic must not lose the conversation.

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

use hymba::foreign;

use crate::cli::{terminal, usage::Reported};

/// Runs `work`, and reports a panic as one sentence.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Reported> {
    let before = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        if !foreign::is_within() {
            terminal::error(&sentence(info));
        }
    }));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(before);
    done.map_err(|_| Reported)
}

fn sentence(info: &PanicHookInfo<'_>) -> String {
    let location = info.location().map(|location| format!(" at {location}")).unwrap_or_default();
    format!("internal error{location}: {}; please report this bug", foreign::message(info.payload()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_one_sentence() {
        assert!(guarded(|| 5).is_ok_and(|done| done == 5));
        assert!(guarded(|| [1].iter().for_each(|n| assert!(*n > 1, "two\nlines"))).is_err());
        // Panics inside `foreign::call` become errors and are not bugs of this program.
        assert!(guarded(|| foreign::call(|| -> u8 { panic!("within") })).is_ok_and(|done| done.is_err()));
    }
}
