//! The result of generation: text, stop reason, timings.

use std::{ops::AddAssign, time::Duration};

use super::speculate::Counts;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model generated an end-of-sequence token.
    EndOfText,
    /// The token limit was reached.
    Limit,
    /// The limit of tokens or the end of the context cut the text before it matched its constraint.
    Length,
    /// One of the stop strings appeared.
    StopString,
    /// The session's context is full.
    ContextFull,
    /// The caller's `cancel` was set.
    Interrupted,
    /// The reader of the text closed the pipe.
    BrokenPipe,
}

impl StopReason {
    /// Returns the name in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::Limit => "limit",
            Self::Length => "length",
            Self::StopString => "stop_string",
            Self::ContextFull => "context_full",
            Self::Interrupted => "interrupted",
            Self::BrokenPipe => "broken_pipe",
        }
    }
}

/// Timings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Time to process the prompt.
    pub prompt: Duration,
    /// Generated ids. The first one needs no decode step, it follows from the prompt.
    pub generated_tokens: usize,
    /// Ids of the text that were read: as many decode steps, or fewer passes.
    pub decode_steps: usize,
    /// Passes that read them.
    pub passes: usize,
    /// Guesses of tokens that were read with them.
    pub drafted: usize,
    /// Those of the guesses that were right.
    pub accepted: usize,
    /// Time to find the guesses, and to choose among them.
    pub drafting: Duration,
    /// Time from the end of the prompt to the end of the text: decode steps, sampling and the sink.
    pub generation: Duration,
    /// Time to find out which tokens may come next, where the text has to match something; a part of the above.
    pub constraint: Duration,
}

impl AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.prompt += other.prompt;
        self.generated_tokens += other.generated_tokens;
        self.decode_steps += other.decode_steps;
        self.passes += other.passes;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.drafting += other.drafting;
        self.generation += other.generation;
        self.constraint += other.constraint;
    }
}

impl Timings {
    /// Returns prompt tokens processed per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Returns ids of the text read per second; 0 if there was none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_steps, self.generation)
    }

    /// Returns passes per second that read the text; 0 if there was none.
    pub fn pass_rate(&self) -> f64 {
        rate(self.passes, self.generation)
    }

    /// Returns how many tokens a pass has read; `None` if there was no pass.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.decode_steps as f64 / self.passes as f64)
    }

    /// Returns which share of the guesses was right; `None` if there was none.
    pub fn accepted_share(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }

    /// Adds what was read.
    pub fn add(&mut self, counts: Counts) {
        self.decode_steps += counts.tokens;
        self.passes += counts.passes;
        self.drafted += counts.drafted;
        self.accepted += counts.accepted;
        self.drafting += counts.drafting;
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

/// A generated text.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The text passed to the sink.
    pub text: String,
    /// What would follow it if the text were over: what was held back where it may go on, see [`Request::pauses`].
    ///
    /// [`Request::pauses`]: super::generate::Request::pauses
    pub held: String,
    /// The chosen tokens without the end token; with a stop string they extend beyond `text`.
    pub ids: Vec<u32>,
    /// The last of them, if the session has not processed it.
    pub unread: Option<u32>,
    /// Why the text ended.
    pub stop: StopReason,
    /// Timings.
    pub timings: Timings,
}
