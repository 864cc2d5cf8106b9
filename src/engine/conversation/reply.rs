//! Messages and the model's replies.

use std::{io, time::Instant};

use super::{Conversation, Overflow};
use crate::{
    Error, Result,
    engine::{
        generate::{Generation, Request, StopReason, Timings, TokenModel, generate},
        timeline::{Step, Watch, prefilled},
    },
};

/// What a reply goes to.
pub struct ReplySink<'a> {
    /// Ends it; gets the progress of reading that takes time.
    pub watch: Watch<'a>,
    /// Gets the text as it comes, see [`generate`].
    pub text: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

/// A reply.
pub struct Reply {
    /// Its text, why it ended, how long it took.
    pub generation: Generation,
    /// Turns that were dropped to make room.
    pub dropped: usize,
}

impl Conversation<'_> {
    /// Sends `message` and streams the reply. A message that got no reply, being cancelled before, leaves nothing behind.
    pub fn send(&mut self, message: &str, sink: &mut ReplySink<'_>) -> Result<Reply> {
        // Before the message takes memory many times its length.
        let least = self.tokenizer.least_tokens(message);
        if least >= self.timeline.context() {
            return Err(self.full(least));
        }
        let mut prompt = self.prompt_after(&self.current, message)?;
        let mut dropped = 0;
        if prompt.len() >= self.timeline.context() {
            let (kept, shorter) = self.slide_window(Some(message), &sink.watch)?.unwrap_or_default();
            if shorter.is_empty() {
                return Err(self.full(prompt.len()));
            }
            dropped = self.current.turns.len() - kept.turns.len();
            (self.current, prompt) = (kept, shorter);
        }
        self.reply(message, &prompt, false, dropped, sink)
    }

    /// Streams another reply to the last message, which replaces the one there is.
    pub fn regenerate(&mut self, sink: &mut ReplySink<'_>) -> Result<Reply> {
        let mut prompt = self.current.steps();
        let turn = self.current.turns.last().ok_or(Error::NothingSaid)?;
        prompt.truncate(turn.prompt);
        let message = turn.user.clone();
        self.reply(&message, &prompt, true, 0, sink)
    }

    /// Streams a reply to `message`, as another turn or if `replaces` in place of the last one, which stays until then.
    fn reply(
        &mut self,
        message: &str,
        prompt: &[Step],
        mut replaces: bool,
        dropped: usize,
        sink: &mut ReplySink<'_>,
    ) -> Result<Reply> {
        let timings = self.prefill_prompt(prompt, &sink.watch)?;
        let (text, ids, stop) = (String::new(), Vec::new(), StopReason::ContextFull);
        let mut reply = Reply { generation: Generation { text, ids, unread: None, stop, timings }, dropped };
        let mut prompt = prompt.len();
        loop {
            self.generate_until_full(&mut reply.generation, sink)?;
            let steps = self.read_pending_token(&reply.generation)?;
            if replaces {
                self.current.turns.pop();
            }
            self.current.push(message, &reply.generation.text, prompt, steps);
            if reply.generation.stop != StopReason::ContextFull || !self.slide(&mut reply, &sink.watch)? {
                break;
            }
            // The turn goes on, and is replaced when its reply is longer.
            replaces = true;
            prompt = self.current.turns.last().map_or(prompt, |turn| turn.prompt);
        }
        self.timeline.checkpoint()?;
        Ok(reply)
    }

    /// Reads the prompt, as much of it as is not read already, and returns what it took.
    fn prefill_prompt(&mut self, prompt: &[Step], watch: &Watch<'_>) -> Result<Timings> {
        let start = Instant::now();
        let before = self.timeline.evaluated();
        self.timeline.seek(prompt, watch)?;
        self.timeline.checkpoint()?;
        let prompt_tokens = self.timeline.evaluated() - before;
        Ok(Timings { prompt_tokens, prompt: start.elapsed(), ..Timings::default() })
    }

    /// Adds to `reply` until it ends, or the context does.
    fn generate_until_full(&mut self, reply: &mut Generation, sink: &mut ReplySink<'_>) -> Result<()> {
        let request = Request {
            history: &self.timeline.ids(),
            prompt: &[],
            limit: self.options.limit.map(|limit| limit - reply.ids.len()),
            stops: &self.stops,
            timings: reply.timings,
            cancel: Some(sink.watch.cancel),
        };
        let more = generate(&mut self.timeline, self.tokenizer, &mut self.sampler, &request, sink.text)?;
        let (text, ids) = (reply.text.clone() + &more.text, [&*reply.ids, &more.ids].concat());
        *reply = Generation { text, ids, ..more };
        if reply.ids.is_empty() && reply.stop == StopReason::Interrupted { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reads the last token of `reply`, unless the text ended before it, and returns all
    /// steps; with one for that token if room for it is yet to be made.
    fn read_pending_token(&mut self, reply: &Generation) -> Result<Vec<Step>> {
        let broken_off = matches!(reply.stop, StopReason::StopString | StopReason::BrokenPipe);
        let pending = reply.unread.filter(|_| !broken_off);
        let full = self.timeline.tokens() >= self.timeline.context();
        if let Some(id) = pending.filter(|_| !full) {
            self.timeline.decode(id)?;
        }
        let mut steps = self.timeline.steps().to_vec();
        if reply.stop == StopReason::ContextFull && self.options.overflow == Overflow::Slide {
            steps.extend(prefilled(pending.as_slice()));
        }
        Ok(steps)
    }

    /// Drops the oldest turns, if that makes room for the rest of `reply`, and reads the others again. Returns whether the
    /// reply can go on.
    fn slide(&mut self, reply: &mut Reply, watch: &Watch<'_>) -> Result<bool> {
        let window = match self.slide_window(None, watch) {
            Err(Error::Cancelled) => {
                reply.generation.stop = StopReason::Interrupted;
                None
            }
            window => window?,
        };
        let Some((kept, _)) = window else {
            // Nor is there room for the token that was to be read then.
            let read = self.timeline.steps().to_vec();
            if let Some(turn) = self.current.turns.pop() {
                self.current.push(&turn.user, &turn.reply, turn.prompt, read);
            }
            return Ok(false);
        };
        reply.dropped += self.current.turns.len() - kept.turns.len();
        self.current = kept;
        match self.sync(watch) {
            Err(Error::Cancelled) => {
                reply.generation.stop = StopReason::Interrupted;
                Ok(false)
            }
            synced => synced.map(|()| true),
        }
    }
}
