//! What goes wrong in the program itself must not take the conversation with it.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
};

use crate::cli::{terminal, usage::Reported};

/// Does `work`. If it panics, that is told in a sentence.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Reported> {
    let before = panic::take_hook();
    panic::set_hook(Box::new(|info| terminal::note(&sentence(info))));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(before);
    done.map_err(|_| Reported)
}

fn sentence(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    format!("this is a bug of the program{place}: {}; please report it", what(info.payload()))
}

fn what(payload: &(dyn Any + Send)) -> String {
    let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    said.unwrap_or("a panic").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_sentence() {
        assert!(guarded(|| 5).is_ok_and(|done| done == 5));
        assert!(guarded(|| [1].iter().for_each(|n| assert!(*n > 1, "two\nlines"))).is_err());
        assert_eq!(what(&"two\n lines"), "two lines");
        assert_eq!(what(&"of a string".to_owned()), "of a string");
        assert_eq!(what(&5), "a panic");
    }
}
