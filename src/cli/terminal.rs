//! What the user reads that is not a result: messages on standard error, each with the program's name in front.

use std::{
    borrow::Cow,
    env,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use super::hints::{Place, hint};

/// Writes `hymba: message` to standard error. That nobody may be listening there is no reason to fail.
pub fn note(message: &str) {
    let message = if io::stderr().is_terminal() { printable(message) } else { message.into() };
    let _ = writeln!(io::stderr(), "hymba: {message}");
}

/// Returns `text` with its control characters as escapes (`\x1b`), but for line breaks and tabs. What comes from files, or
/// out of a model, may hold some, and a terminal must not obey them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if obeyed(c) {
            let _ = write!(shown, "\\x{:02x}", c as u32); // to a string, which takes all
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Returns `text` as standard output shall have it: [`printable`] at a terminal, else as it is.
pub fn for_output(text: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { printable(text) } else { text.into() }
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
    if !answer.use_stderr() {
        return end_of_output(answer.print());
    }
    let text = answer.render();
    // The parser repeats what was typed, or what a shell found for `*`.
    let foreign = env::args_os().any(|argument| argument.to_string_lossy().contains(char::is_control));
    let text = match io::stderr().is_terminal() {
        true if foreign => printable(&text.to_string()).into_owned(),
        true => text.ansi().to_string(),
        false => text.to_string(),
    };
    // As with all messages: a reader that went away is no error.
    let _ = io::stderr().write_all(text.replacen("error:", "hymba:", 1).as_bytes());
    ExitCode::from(2)
}

/// Returns the exit code when all is written, or as `written` says was not.
pub fn end_of_output(written: io::Result<()>) -> ExitCode {
    match written.and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            note(&format!("cannot write to standard output: {e}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
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

    #[test]
    fn a_terminal_obeys_nothing() {
        for (text, shown) in [
            ("a\x1b[31mb\u{9b}0m\r\x7f\0", r"a\x1b[31mb\x9b0m\x0d\x7f\x00"),
            ("one\n\ttwo – é", "one\n\ttwo – é"),
            ("", ""),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
