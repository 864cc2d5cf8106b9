//! The error type of the template engine.

/// Why a template was rejected or failed to render.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The line number, starting at 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// Whether the caller cancelled the rendering.
    pub cancelled: bool,
}

/// Longest message in characters: a template can determine part of it.
const LONGEST: usize = 2000;

impl Failure {
    /// Returns a failure with the message `what`, shortened if necessary.
    pub(super) fn new(what: impl Into<String>) -> Self {
        let mut what = what.into();
        if let Some((end, _)) = what.char_indices().nth(LONGEST) {
            what.replace_range(end.., " …");
        }
        Self { line: None, what, cancelled: false }
    }

    /// Returns the failure for cancelled rendering.
    pub(super) fn cancelled() -> Self {
        Self { line: None, what: "rendering was cancelled".into(), cancelled: true }
    }

    /// Adds the line number, unless there is one.
    pub(super) fn at(self, line: usize) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}
