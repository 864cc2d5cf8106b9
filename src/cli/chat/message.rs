//! Assembles messages from typed or piped lines.

use hymba::{Error, limits};

/// Delimits a multi-line message.
const QUOTES: &str = "\"\"\"";

/// An input event.
#[derive(Debug)]
pub enum Event {
    /// A complete line: a command or a message.
    Line(String),
    /// A message, never a command.
    Message(String),
    /// Input that was rejected.
    Refused(Error),
    /// Ctrl-C on an empty line.
    Interrupt,
    /// End of input.
    End,
}

/// Whether a typed message is complete: not within `"""`, nor after a trailing backslash.
pub fn is_complete(text: &str) -> bool {
    match quoted(text) {
        Some(rest) => ends(rest, true),
        None => ends(text, false),
    }
}

/// Returns the text after the opening quotes.
fn quoted(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix(QUOTES)
}

/// Whether a message, `quoted` or not, may end after `line`.
fn ends(line: &str, quoted: bool) -> bool {
    if quoted { line.trim_end().ends_with(QUOTES) } else { !line.ends_with('\\') }
}

/// Returns the message without its quotes, or without the backslashes before its line breaks.
fn joined(text: &str) -> String {
    match quoted(text) {
        Some(rest) => rest.trim_end().strip_suffix(QUOTES).unwrap_or(rest).trim_matches('\n').into(),
        None => text.strip_suffix('\\').unwrap_or(text).replace("\\\n", "\n"),
    }
}

/// Classifies `text` typed at a terminal. Quoted text is a message. So is text with a line break that no backslash
/// precedes: it was pasted, or is an earlier message, and is taken literally.
pub fn typed(text: &str) -> Event {
    if quoted(text).is_some() {
        Event::Message(joined(text))
    } else if text.replace("\\\n", "").contains('\n') {
        Event::Message(text.into())
    } else {
        Event::Line(joined(text))
    }
}

/// A message assembled line by line, each in constant time.
#[derive(Default)]
pub struct Draft {
    text: String,
    /// Length of the text in bytes, including the part dropped because the text is too long.
    bytes: usize,
    started: bool,
    quoted: bool,
    complete: bool,
    refused: Option<Error>,
}

impl Draft {
    /// Adds a line.
    pub fn push(&mut self, line: &str) {
        self.complete = if self.started { ends(line, self.quoted) } else { is_complete(line) };
        self.quoted |= !self.started && quoted(line).is_some();
        self.bytes += usize::from(self.started) + line.len();
        if self.bytes <= limits::PROMPT {
            if self.started {
                self.text.push('\n');
            }
            self.text += line;
        }
        self.started = true;
    }

    /// Adds a rejected line, which makes the whole message rejected.
    pub fn refuse(&mut self, line: &str, reason: Error) {
        self.push(line);
        self.refused.get_or_insert(reason);
    }

    /// Whether it is complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns the message, or with `commands` the line that may be a command.
    pub fn finish(self, commands: bool) -> Event {
        match self.refused.map_or_else(|| limits::check_length(self.bytes, "a message"), Err) {
            _ if !self.started => Event::End,
            Err(reason) => Event::Refused(reason),
            Ok(()) if commands && !self.quoted => Event::Line(joined(&self.text)),
            Ok(()) => Event::Message(joined(&self.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::assert_linear;

    fn drafted(text: &str) -> Draft {
        let mut draft = Draft::default();
        text.split('\n').for_each(|line| draft.push(line));
        draft
    }

    #[test]
    fn multi_line_messages_end_at_the_closing_quotes_or_line() {
        for (typed, complete, message) in [
            ("a", true, "a"),
            ("a\\", false, "a"),
            ("a\\\nb", true, "a\nb"),
            ("a\\\nb\\", false, "a\nb"),
            ("\"\"\"", false, ""),
            ("\"\"\"a", false, "a"),
            ("\"\"\"\na\n\nb\n\"\"\"", true, "a\n\nb"),
            ("\"\"\"\na\\\n", false, "a\\"),
            ("\"\"\"a\"\"\" ", true, "a"),
            ("a \"\"\"", true, "a \"\"\""),
        ] {
            assert_eq!((is_complete(typed), &*joined(typed)), (complete, message), "{typed:?}");
            let draft = drafted(typed);
            assert_eq!(draft.is_complete(), complete, "{typed:?}");
            assert!(matches!(draft.finish(false), Event::Message(text) if text == message), "{typed:?}");
        }
        assert!(matches!(Draft::default().finish(false), Event::End));
    }

    #[test]
    fn pasted_text_is_never_a_command() {
        let is = |text| match typed(text) {
            Event::Line(text) => (true, text),
            Event::Message(text) => (false, text),
            other => panic!("{other:?}"),
        };
        assert_eq!(is("/save a"), (true, "/save a".into()));
        assert_eq!(is("/system a\\\nb"), (true, "/system a\nb".into()));
        assert_eq!(is("\"\"\"/save a\"\"\""), (false, "/save a".into()));
        assert_eq!(is("/save a\n"), (false, "/save a\n".into()));
        assert_eq!(is("//a\\\nb\n/c"), (false, "//a\\\nb\n/c".into()));
    }

    #[test]
    fn drafts_are_commands_only_if_commands_are_enabled() {
        assert!(matches!(drafted("/save a").finish(true), Event::Line(line) if line == "/save a"));
        for (text, commands) in [("/save a", false), ("\"\"\"\n/save a\n\"\"\"", true)] {
            assert!(matches!(drafted(text).finish(commands), Event::Message(text) if text == "/save a"));
        }
    }

    /// The text must be copied once, not once per line.
    #[test]
    fn time_is_linear_in_the_number_of_lines() {
        for line in ["", "a"] {
            assert_linear("lines of a message", 20_000, |n| {
                let mut draft = drafted(QUOTES);
                for _ in 0..n {
                    draft.push(line);
                    assert!(!draft.is_complete());
                }
                draft.push(QUOTES);
                assert!(draft.is_complete());
                let Event::Message(text) = draft.finish(true) else { panic!("it is a message") };
                assert_eq!(text.len(), if line.is_empty() { 0 } else { 2 * n - 1 });
            });
        }
    }

    #[test]
    fn text_beyond_the_limit_is_counted_but_dropped() {
        let mut draft = drafted(QUOTES);
        for _ in 0..20 {
            draft.push(&"a".repeat(1 << 20));
        }
        assert!(draft.text.len() <= limits::PROMPT);
        draft.push(QUOTES);
        let Event::Refused(reason) = draft.finish(false) else { panic!("it is too long") };
        assert!(reason.to_string().starts_with("a message has 20971547 bytes; the limit is 16 MB"), "{reason}");
    }
}
