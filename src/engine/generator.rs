//! A text being generated, whoever runs the passes: what was chosen, and what decides whether it goes on.

use std::io;

use super::generation::{Generation, StopReason, Timings};
use crate::{
    Error, Result,
    constrain::{Matching, Next},
    sample::Sampler,
    text::{StopMatcher, Stream, Tokenizer},
};

/// Gets text as it comes.
pub type Sink<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// A text being generated. Whoever runs the passes gives it the logits after each token, in the order of the text, until
/// there is a reason to stop; reads the token it chose, or several in a pass, and says so by [`Generator::mark_read`].
pub struct Generator<'t> {
    tokenizer: &'t Tokenizer,
    /// All ids: those before the text, and those chosen.
    history: Vec<u32>,
    /// How many of them come before the text.
    before: usize,
    /// Whether the model has yet to read the last of them.
    unread: bool,
    limit: Option<usize>,
    /// What the sink got.
    shown: String,
    stream: Stream<'t>,
    stops: StopMatcher,
    /// What the text has to match.
    matching: Option<Matching>,
    /// Whether the text may go on after the context was full.
    pauses: bool,
}

impl<'t> Generator<'t> {
    /// A text that goes on after the ids of `history`, for at most `limit` tokens, and ends before one of `stops`.
    pub fn new(tokenizer: &'t Tokenizer, history: Vec<u32>, limit: Option<usize>, stops: &[String]) -> Result<Self> {
        let (stream, stops) = (tokenizer.stream_after(&history), StopMatcher::new(stops)?);
        let before = history.len();
        let (shown, matching, pauses) = (String::new(), None, false);
        Ok(Self { tokenizer, history, before, unread: false, limit, shown, stream, stops, matching, pauses })
    }

    /// Holds what follows to `matching`: tokens that it rules out are not chosen, and where it leaves one alone, that one
    /// follows whatever the logits and the sampler's random numbers are.
    pub fn hold_to(&mut self, matching: Matching) {
        // The constraint knows tokens by what they say in the middle of a text.
        self.stream.keep_space();
        self.matching = Some(matching);
    }

    /// Takes up a text that paused: the last `begun` ids of its history were chosen for it before. Half a character and the
    /// beginning of a stop string are held back again.
    pub fn resume(&mut self, begun: usize) {
        let (before, begun) = self.history.split_at(self.history.len().saturating_sub(begun));
        self.stream = self.tokenizer.stream_after(before);
        if self.matching.is_some() {
            self.stream.keep_space();
        }
        for &id in begun {
            self.stops.push(&self.stream.push(id)); // what comes out was shown
        }
    }

    /// From now on, the end of the context is a pause: what is held back then does not go to the sink.
    pub fn pause_when_full(&mut self) {
        self.pauses = true;
    }

    /// Returns all ids: those before the text, and those chosen.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Returns the ids chosen so far.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.before..]
    }

    /// Whether as many tokens were chosen as were wanted.
    pub fn at_limit(&self) -> bool {
        self.limit.is_some_and(|limit| self.ids().len() >= limit)
    }

    /// Returns how many tokens may still be chosen; `None`: any number.
    pub fn left(&self) -> Option<usize> {
        self.limit.map(|limit| limit.saturating_sub(self.ids().len()))
    }

    /// Returns the last token chosen, if the model has yet to read it.
    pub fn unread(&self) -> Option<u32> {
        self.history.last().copied().filter(|_| self.unread)
    }

    /// Notes that the model has read the last token chosen.
    pub fn mark_read(&mut self) {
        self.unread = false;
    }

    /// Chooses the next token from the logits `[vocab]` after all ids so far, and shows the text that is complete with it.
    /// Returns why the text ends, if it does; a token that says so is not one of its ids.
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
        self.unread = true;
        let piece = self.stream.push(id);
        let stop = self.push_text(&piece, sink)?;
        let over = self.matching.as_ref().is_some_and(Matching::is_over);
        Ok(stop.or(over.then_some(StopReason::EndOfText)))
    }

    /// Returns tokens that will most likely be chosen next, whatever the logits: those that the constraint leaves no choice
    /// about.
    pub fn forced(&mut self) -> Vec<u32> {
        self.matching.as_mut().map(Matching::forced).unwrap_or_default()
    }

    /// Shows what was held back, unless `stop` says that nothing may follow, and returns the whole. A stop string or a
    /// sink that closes in what was held back is the reason then.
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
        let (ids, unread) = (self.ids().to_vec(), self.unread());
        Ok(Generation { text: self.shown, held, ids, unread, stop, timings })
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
