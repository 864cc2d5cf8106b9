//! What is typed, and what message it makes.

/// Starts and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// What came.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A message or a command, whole.
    Line(String),
    /// Ctrl-C where nothing was typed.
    Interrupt,
    /// Nothing more comes.
    End,
}

/// Has a message that was typed so far an end? Not within `"""`, nor after a backslash.
pub fn is_whole(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => rest.trim_end().ends_with(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// The message that was typed: without the quotes around it, or the backslashes before its line breaks.
pub fn joined(text: &str) -> String {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => rest.trim_end().strip_suffix(QUOTES).unwrap_or(rest).trim_matches('\n').into(),
        None => text.replace("\\\n", "\n").strip_suffix('\\').map_or_else(|| text.replace("\\\n", "\n"), Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_several_lines() {
        for (typed, whole, message) in [
            ("a", true, "a"),
            ("a\\", false, "a"),
            ("a\\\nb", true, "a\nb"),
            ("\"\"\"", false, ""),
            ("\"\"\"a", false, "a"),
            ("\"\"\"\na\n\nb\n\"\"\"", true, "a\n\nb"),
            ("\"\"\"a\"\"\" ", true, "a"),
            ("a \"\"\"", true, "a \"\"\""),
        ] {
            assert_eq!((is_whole(typed), &*joined(typed)), (whole, message), "{typed:?}");
        }
    }
}
