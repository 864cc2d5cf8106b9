//! What goes wrong in the program itself must not take the conversation with it.

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

use hymba::foreign;

use crate::cli::{terminal, usage::Reported};

/// Does `work`. If it panics, that is told in a sentence.
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
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    format!("this is a bug of the program{place}: {}; please report it", foreign::message(info.payload()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_sentence() {
        assert!(guarded(|| 5).is_ok_and(|done| done == 5));
        assert!(guarded(|| [1].iter().for_each(|n| assert!(*n > 1, "two\nlines"))).is_err());
        // What a library does within the boundary is an error of its caller's, not of the program.
        assert!(guarded(|| foreign::call(|| -> u8 { panic!("within") })).is_ok_and(|done| done.is_err()));
    }
}
