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
    /// The token limit or the end of the context cut the text before it matched its constraint.
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

/// Timings and token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Time to process the prompt.
    pub prompt: Duration,
    /// Generated tokens. The first one needs no decode step, since its logits follow from the prompt.
    pub generated_tokens: usize,
    /// Generated tokens that were processed.
    pub decode_steps: usize,
    /// Passes that processed them.
    pub passes: usize,
    /// Draft tokens that were verified.
    pub drafted: usize,
    /// Draft tokens that were accepted.
    pub accepted: usize,
    /// Time spent on drafting.
    pub drafting: Duration,
    /// Time from the end of the prompt to the end of the text: decode steps, sampling and the sink.
    pub generation: Duration,
    /// Time to compute the allowed tokens of a constraint; part of the above.
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

    /// Returns generated tokens processed per second; 0 if there are none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_steps, self.generation)
    }

    /// Returns decode passes per second; 0 if there were none.
    pub fn pass_rate(&self) -> f64 {
        rate(self.passes, self.generation)
    }

    /// Returns the mean number of tokens per pass; `None` if there was no pass.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.decode_steps as f64 / self.passes as f64)
    }

    /// Returns the acceptance rate of draft tokens; `None` if there were none.
    pub fn accepted_share(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }

    /// Adds the counts of the speculator.
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
    /// Text that was held back in case the generation continues, see [`Request::pauses`].
    ///
    /// [`Request::pauses`]: super::generate::Request::pauses
    pub held: String,
    /// The chosen tokens without the end token; with a stop string they extend beyond `text`.
    pub ids: Vec<u32>,
    /// The last of them, if the session has not processed it.
    pub unprocessed: Option<u32>,
    /// Why the text ended.
    pub stop: StopReason,
    /// Timings.
    pub timings: Timings,
}
