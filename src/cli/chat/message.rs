//! What is typed, and what message it makes.

use hymba::{Error, limits};

/// Starts and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// What came.
#[derive(Debug)]
pub enum Event {
    /// A command, or else a message, whole.
    Line(String),
    /// A message, whatever it begins with.
    Message(String),
    /// Something that can't be taken.
    Refused(Error),
    /// Ctrl-C where nothing was typed.
    Interrupt,
    /// Nothing more comes.
    End,
}

/// Has a message that was typed so far an end? Not within `"""`, nor after a backslash.
pub fn is_whole(text: &str) -> bool {
    match quoted(text) {
        Some(rest) => ends(rest, true),
        None => ends(text, false),
    }
}

/// What comes after the quotes that `text` begins with.
fn quoted(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix(QUOTES)
}

/// Whether a message, `quoted` or not, may end after `line`.
fn ends(line: &str, quoted: bool) -> bool {
    if quoted { line.trim_end().ends_with(QUOTES) } else { !line.ends_with('\\') }
}

/// The message that was typed: without the quotes around it, or the backslashes before its line breaks.
fn joined(text: &str) -> String {
    match quoted(text) {
        Some(rest) => rest.trim_end().strip_suffix(QUOTES).unwrap_or(rest).trim_matches('\n').into(),
        None => text.strip_suffix('\\').unwrap_or(text).replace("\\\n", "\n"),
    }
}

/// What `text`, typed at a terminal, is. Between quotes it is a message. A line break that no backslash announces was not
/// typed but pasted, or is one of an earlier message: that is a message too, to the letter.
pub fn typed(text: &str) -> Event {
    if quoted(text).is_some() {
        Event::Message(joined(text))
    } else if text.replace("\\\n", "").contains('\n') {
        Event::Message(text.into())
    } else {
        Event::Line(joined(text))
    }
}

/// A message that comes line by line; how long it is does not matter to how long the next line takes.
#[derive(Default)]
pub struct Draft {
    text: String,
    /// Bytes of the text, those included that were not kept as it is too long.
    bytes: usize,
    begun: bool,
    quoted: bool,
    whole: bool,
    refused: Option<Error>,
}

impl Draft {
    /// Adds a line.
    pub fn push(&mut self, line: &str) {
        self.whole = if self.begun { ends(line, self.quoted) } else { is_whole(line) };
        self.quoted |= !self.begun && quoted(line).is_some();
        self.bytes += usize::from(self.begun) + line.len();
        if self.bytes <= limits::PROMPT {
            if self.begun {
                self.text.push('\n');
            }
            self.text += line;
        }
        self.begun = true;
    }

    /// Adds a line that can't be taken: the message can't be either.
    pub fn refuse(&mut self, line: &str, why: Error) {
        self.push(line);
        self.refused.get_or_insert(why);
    }

    /// Has it an end?
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Returns the message, or what may be a command if there are `commands`.
    pub fn finish(self, commands: bool) -> Event {
        match self.refused.map_or_else(|| limits::check_length(self.bytes, "a message"), Err) {
            _ if !self.begun => Event::End,
            Err(why) => Event::Refused(why),
            Ok(()) if commands && !self.quoted => Event::Line(joined(&self.text)),
            Ok(()) => Event::Message(joined(&self.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::doubles;

    fn drafted(text: &str) -> Draft {
        let mut draft = Draft::default();
        text.split('\n').for_each(|line| draft.push(line));
        draft
    }

    #[test]
    fn messages_of_several_lines() {
        for (typed, whole, message) in [
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
            assert_eq!((is_whole(typed), &*joined(typed)), (whole, message), "{typed:?}");
            let draft = drafted(typed);
            assert_eq!(draft.is_whole(), whole, "{typed:?}");
            assert!(matches!(draft.finish(false), Event::Message(text) if text == message), "{typed:?}");
        }
        assert!(matches!(Draft::default().finish(false), Event::End));
    }

    #[test]
    fn what_was_pasted_is_no_command() {
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
    fn a_draft_is_a_command_only_where_there_are_commands() {
        assert!(matches!(drafted("/save a").finish(true), Event::Line(line) if line == "/save a"));
        for (text, commands) in [("/save a", false), ("\"\"\"\n/save a\n\"\"\"", true)] {
            assert!(matches!(drafted(text).finish(commands), Event::Message(text) if text == "/save a"));
        }
    }

    /// The text is copied once, not once a line: that took minutes.
    #[test]
    fn many_lines_take_no_longer_than_their_text() {
        for line in ["", "a"] {
            doubles("lines of a message", 20_000, |n| {
                let mut draft = drafted(QUOTES);
                for _ in 0..n {
                    draft.push(line);
                    assert!(!draft.is_whole());
                }
                draft.push(QUOTES);
                assert!(draft.is_whole());
                let Event::Message(text) = draft.finish(true) else { panic!("it is a message") };
                assert_eq!(text.len(), if line.is_empty() { 0 } else { 2 * n - 1 });
            });
        }
    }

    #[test]
    fn what_is_too_long_is_counted_but_not_kept() {
        let mut draft = drafted(QUOTES);
        for _ in 0..20 {
            draft.push(&"a".repeat(1 << 20));
        }
        assert!(draft.text.len() <= limits::PROMPT);
        draft.push(QUOTES);
        let Event::Refused(why) = draft.finish(false) else { panic!("it is too long") };
        assert!(why.to_string().starts_with("a message has 20971547 bytes, but 16 MiB are the limit"), "{why}");
    }
}
