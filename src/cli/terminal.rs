//! What the user reads that is not a result: messages on standard error, each with the program's name in front.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use super::hints::{Place, hint};

/// Writes `hymba: message` to standard error. That nobody may be listening there is no reason to fail.
pub fn note(message: &str) {
    let _ = writeln!(io::stderr(), "hymba: {message}");
}

/// What is done in place of what failed.
pub fn instead(why: &hymba::Error) -> String {
    let done = match why {
        hymba::Error::CacheRange { .. } => "the KV cache is of type f32 now",
        _ => "the CPU does the work",
    };
    format!("{done}: {}", with_hint(why.to_string(), why, Place::CommandLine))
}

/// The error, what caused it, and what to do about it at this `place`, in one line; a cause that the line ends with
/// already is not repeated.
pub fn one_line(error: &anyhow::Error, place: Place) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref()) {
        line = with_hint(line, error, place);
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn with_hint(said: String, error: &hymba::Error, place: Place) -> String {
    match hint(error, place) {
        Some(hint) => format!("{said}; {hint}"),
        None => said,
    }
}

/// Did the reader of our output go away?
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Shows what clap has to say instead of running: help or the version on standard output, or what is wrong with the
/// flags on standard error, with our name in front of it.
pub fn show_parser_answer(answer: &clap::Error) -> ExitCode {
    // As with all messages: a reader that went away is no error.
    if answer.use_stderr() {
        let text = answer.render();
        let text = if io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() };
        let _ = io::stderr().write_all(text.replacen("error:", "hymba:", 1).as_bytes());
        ExitCode::from(2)
    } else {
        let _ = answer.print();
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_come_in_one_line_and_once() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let error = anyhow::Error::from(hymba::Error::io("cannot open", "a.gguf", missing())).context("HYMBA_MODEL");
        let one_line = |error| one_line(&error, Place::CommandLine);
        assert_eq!(one_line(error), "HYMBA_MODEL: cannot open a.gguf: entity not found");
        assert_eq!(one_line(anyhow::anyhow!("two\n  lines")), "two lines");
        let empty = anyhow::Error::from(hymba::Error::NoTokenizer("a.gguf".into())).context("HYMBA_MODEL");
        let said = one_line(empty);
        assert!(said.starts_with("HYMBA_MODEL: a.gguf: has no tokenizer; convert the model again with `"), "{said}");
        let error = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe)).context("while writing").unwrap_err();
        assert!(is_broken_pipe(&error) && !is_broken_pipe(&missing().into()));
    }
}
