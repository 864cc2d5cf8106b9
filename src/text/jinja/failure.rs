//! The error type of the template engine.

/// Why a template was rejected or failed to render.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The line number, starting at 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// Whether the caller cancelled the rendering.
    pub cancelled: bool,
}

/// Longest message in characters: a template can determine part of it.
const LONGEST: usize = 2000;

impl Failure {
    /// Returns a failure with the message `problem`, shortened if necessary.
    pub(super) fn new(problem: impl Into<String>) -> Self {
        let mut problem = problem.into();
        if let Some((end, _)) = problem.char_indices().nth(LONGEST) {
            problem.replace_range(end.., " …");
        }
        Self { line: None, problem, cancelled: false }
    }

    /// Returns the failure for cancelled rendering.
    pub(super) fn cancelled() -> Self {
        Self { line: None, problem: "rendering was cancelled".into(), cancelled: true }
    }

    /// Adds the line number, unless there is one.
    pub(super) fn at(self, line: usize) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}
