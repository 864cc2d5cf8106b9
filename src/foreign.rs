//! Converts panics in third-party code, on input that it does not expect, to errors, and rewords error messages.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is within [`call`]: then panics are not reported.
pub fn is_within() -> bool {
    DEPTH.get() > 0
}

/// Installs a panic hook that ignores panics within [`call`] and passes on all others.
pub fn silence_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_within() {
            before(info);
        }
    }));
}

/// Returns the result of `work`, or the message of its panic; after a panic, nothing that `work` modified may be used.
pub fn call<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.set(DEPTH.get() + 1);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    done.map_err(|payload| message(&*payload))
}

/// Returns the message of a panic as one line.
pub fn message(payload: &(dyn Any + Send)) -> String {
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    message.unwrap_or("a panic").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns why a text is not accepted as JSON; to be appended to its name. A text that nests deeper than serde_json's
/// limit may well be JSON.
pub fn json_problem(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.starts_with("recursion limit exceeded") {
        true => "is nested more than 127 levels deep".into(),
        false => format!("is not JSON: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn deeply_nested_json_is_not_called_invalid() {
        let nested = |levels: usize| serde_json::from_str::<Value>(&("[".repeat(levels) + &"]".repeat(levels)));
        assert!(nested(127).is_ok());
        assert_eq!(json_problem(&nested(128).unwrap_err()), "is nested more than 127 levels deep");
        let message = json_problem(&serde_json::from_str::<Value>("[1").unwrap_err());
        assert!(message.starts_with("is not JSON: EOF"), "{message}");
    }

    #[test]
    fn panics_become_their_message() {
        assert_eq!(call(|| 5), Ok(5));
        assert_eq!(call(|| "a"[9..].len()).unwrap_err().lines().count(), 1);
        assert_eq!(call(|| -> u8 { panic!("two\n {}", "lines") }), Err("two lines".into()));
        assert_eq!(call(|| -> u8 { panic::panic_any(5) }), Err("a panic".into()));
        assert!(call(is_within).unwrap() && !is_within());
    }
}
