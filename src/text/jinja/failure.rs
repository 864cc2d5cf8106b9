//! Why a template is refused, or fails.

/// Why a template is refused, or fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The line, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// Whether it is that the caller wanted no more of it.
    pub cancelled: bool,
}

/// Characters of a message: templates write some of them.
const LONGEST: usize = 2000;

impl Failure {
    /// Returns a failure that says `what`, or how that begins.
    pub(super) fn new(what: impl Into<String>) -> Self {
        let mut what = what.into();
        if let Some((end, _)) = what.char_indices().nth(LONGEST) {
            what.replace_range(end.., " …");
        }
        Self { line: None, what, cancelled: false }
    }

    /// Returns the failure of work that was cancelled.
    pub(super) fn cancelled() -> Self {
        Self { line: None, what: "it was cancelled".into(), cancelled: true }
    }

    /// The same, with the line.
    pub(super) fn at(self, line: usize) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}
