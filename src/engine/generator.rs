//! A text being generated: the chosen tokens and the reasons to stop. The caller runs the passes.

use std::io;

use super::generation::{Generation, StopReason, Timings};
use crate::{
    Error, Result,
    constrain::{Matching, Next},
    sample::Sampler,
    text::{StopMatcher, Stream, Tokenizer},
};

/// Receives text as it is generated.
pub type Sink<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// A text being generated. The caller runs the passes: it passes the logits after each token, in order, until there is
/// a reason to stop, processes the chosen tokens, one or several per pass, and confirms each by
/// [`Generator::mark_processed`].
pub struct Generator<'t> {
    tokenizer: &'t Tokenizer,
    /// All tokens: those before the text and those chosen.
    history: Vec<u32>,
    /// Number of tokens before the text.
    before: usize,
    /// Whether the model still has to process the last token.
    unprocessed: bool,
    limit: Option<usize>,
    /// The text passed to the sink.
    shown: String,
    stream: Stream<'t>,
    stops: StopMatcher,
    /// The constraint.
    matching: Option<Matching>,
    /// Whether the text may continue after the context is full.
    pauses: bool,
}

impl<'t> Generator<'t> {
    /// Returns a text that continues after the tokens of `history`, for at most `limit` tokens or until one of `stops`.
    pub fn new(tokenizer: &'t Tokenizer, history: Vec<u32>, limit: Option<usize>, stops: &[String]) -> Result<Self> {
        let (stream, stops) = (tokenizer.stream_after(&history), StopMatcher::new(stops)?);
        let before = history.len();
        let (shown, matching, pauses) = (String::new(), None, false);
        Ok(Self { tokenizer, history, before, unprocessed: false, limit, shown, stream, stops, matching, pauses })
    }

    /// Constrains the text: tokens that `matching` excludes are not chosen, and a token without alternatives follows
    /// without using the logits or random numbers.
    pub fn constrain(&mut self, matching: Matching) {
        // The constraint sees each token's text as it is within a text.
        self.stream.keep_space();
        self.matching = Some(matching);
    }

    /// Resumes a paused text, whose tokens so far are the last `generated` ones of the history. Incomplete characters and
    /// partial stop strings are held back again.
    pub fn resume(&mut self, generated: usize) {
        let (before, generated) = self.history.split_at(self.history.len().saturating_sub(generated));
        self.stream = self.tokenizer.stream_after(before);
        if self.matching.is_some() {
            self.stream.keep_space();
        }
        for &id in generated {
            self.stops.push(&self.stream.push(id)); // the output was already shown
        }
    }

    /// From now on, the end of the context is a pause: held-back text is not passed to the sink then.
    pub fn pause_when_full(&mut self) {
        self.pauses = true;
    }

    /// Returns all tokens: those before the text and those chosen.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Returns the tokens chosen so far.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.before..]
    }

    /// Whether the token limit is reached.
    pub fn at_limit(&self) -> bool {
        self.limit.is_some_and(|limit| self.ids().len() >= limit)
    }

    /// Returns the number of tokens that may still be chosen; `None`: no limit.
    pub fn left(&self) -> Option<usize> {
        self.limit.map(|limit| limit.saturating_sub(self.ids().len()))
    }

    /// Returns the last chosen token if the model still has to process it.
    pub fn unprocessed(&self) -> Option<u32> {
        self.history.last().copied().filter(|_| self.unprocessed)
    }

    /// Records that the model has processed the last chosen token.
    pub fn mark_processed(&mut self) {
        self.unprocessed = false;
    }

    /// Chooses the next token from the logits `[vocab]` after all tokens so far, and outputs the text that it
    /// completes. Returns the reason to stop, if there is one; a token that ends the text is not added.
    pub fn choose(&mut self, logits: &[f32], sampler: &mut Sampler, sink: &mut Sink<'_>) -> Result<Option<StopReason>> {
        let id = match &mut self.matching {
            None => sampler.sample(logits, &self.history),
            Some(matching) => match matching.next_tokens()? {
                Next::End => return Ok(Some(StopReason::EndOfText)),
                Next::Token(id) => id,
                Next::Tokens(allowed) => sampler.sample_among(logits, allowed),
            },
        };
        if self.tokenizer.ends().contains(&id) {
            return Ok(Some(StopReason::EndOfText));
        }
        if let Some(matching) = &mut self.matching {
            matching.accept(id)?;
        }
        self.history.push(id);
        self.unprocessed = true;
        let piece = self.stream.push(id);
        let stop = self.push_text(&piece, sink)?;
        let over = self.matching.as_ref().is_some_and(Matching::is_over);
        Ok(stop.or(over.then_some(StopReason::EndOfText)))
    }

    /// Returns the tokens that will most likely follow regardless of the logits, because the constraint leaves no
    /// choice.
    pub fn forced(&mut self) -> Vec<u32> {
        self.matching.as_mut().map(Matching::forced).unwrap_or_default()
    }

    /// Outputs the held-back text, unless `stop` means that nothing may follow, and returns the result. A stop string
    /// or a closed sink at this point changes the stop reason.
    pub fn finish(mut self, mut stop: StopReason, mut timings: Timings, sink: &mut Sink<'_>) -> Result<Generation> {
        let mut held = String::new();
        match stop {
            StopReason::StopString | StopReason::BrokenPipe => {}
            StopReason::ContextFull if self.pauses => {
                let shown = self.shown.len();
                self.flush(&mut |_| Ok(()))?;
                held = self.shown.split_off(shown);
            }
            _ => stop = self.flush(sink)?.unwrap_or(stop),
        }
        if let (StopReason::Limit | StopReason::ContextFull, Some(matching)) = (stop, &mut self.matching)
            && !matching.is_complete()
        {
            stop = StopReason::Length;
        }
        timings.constraint += self.matching.as_ref().map(Matching::spent).unwrap_or_default();
        let (ids, unprocessed) = (self.ids().to_vec(), self.unprocessed());
        Ok(Generation { text: self.shown, held, ids, unprocessed, stop, timings })
    }

    fn flush(&mut self, sink: &mut Sink<'_>) -> Result<Option<StopReason>> {
        let piece = self.stream.finish();
        if let Some(stop) = self.push_text(&piece, sink)? {
            return Ok(Some(stop));
        }
        let held = self.stops.finish();
        self.show(&held, sink)
    }

    fn push_text(&mut self, piece: &str, sink: &mut Sink<'_>) -> Result<Option<StopReason>> {
        let (text, hit) = self.stops.push(piece);
        let closed = self.show(&text, sink)?;
        Ok(if hit { Some(StopReason::StopString) } else { closed })
    }

    fn show(&mut self, text: &str, sink: &mut Sink<'_>) -> Result<Option<StopReason>> {
        if text.is_empty() {
            return Ok(None);
        }
        self.shown.push_str(text);
        match sink(text) {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Some(StopReason::BrokenPipe)),
            Err(e) => Err(Error::io("cannot write", "the text", e)),
        }
    }
}
