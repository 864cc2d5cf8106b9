//! Messages and the model's replies.

use std::{io, time::Instant};

use super::{Branch, Conversation, Overflow, branch::Query, format::Said, prompt::Prompt};
use crate::{
    Error, Result,
    engine::{
        generate::{Generation, Request, StopReason, Timings, TokenModel, generate_with},
        timeline::{Step, Watch, prefilled},
    },
    text::{Call, parse_reply},
};

/// What a reply goes to.
pub struct ReplySink<'a> {
    /// Ends it; gets the progress of reading that takes time.
    pub watch: Watch<'a>,
    /// Gets the text as it comes, see [`generate`](crate::generate).
    pub text: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

/// A reply.
pub struct Reply {
    /// Its text, why it ended, how long it took.
    pub generation: Generation,
    /// Turns that were dropped to make room.
    pub dropped: usize,
    /// Tokens read before that had to be given up, because the template says in another way now what was said.
    pub rewritten: usize,
}

/// What a reply answers.
struct Question<'a> {
    query: Query<'a>,
    /// Steps of the prompt, and their text.
    prompt: usize,
    said: Option<Said>,
    /// Whether the reply replaces the last one.
    replaces: bool,
}

impl Conversation<'_> {
    /// Sends `message` and streams the reply. A message that got no reply, being cancelled before, leaves nothing behind.
    pub fn send(&mut self, message: &str, sink: &mut ReplySink<'_>) -> Result<Reply> {
        self.send_query(Query::User(message), sink)
    }

    /// Returns the calls of tools in the last reply, which wait for their results.
    pub fn calls(&self) -> Vec<Call> {
        match (self.current.turns.last(), self.tools()) {
            (Some(turn), Some(tools)) => parse_reply(&turn.reply, tools).calls,
            _ => Vec::new(),
        }
    }

    /// Sends the results of the last reply's calls, one for each in order, and streams the reply, as [`Self::send`] does.
    pub fn send_results(&mut self, results: &[String], sink: &mut ReplySink<'_>) -> Result<Reply> {
        let calls = self.calls().len();
        if calls == 0 {
            return Err(Error::Request("the last reply calls no tool, so that there is nothing to answer".into()));
        }
        if results.len() != calls {
            let given = results.len();
            return Err(Error::Request(format!("{given} results were given for {calls} calls; give one for each")));
        }
        self.send_query(Query::Results(results), sink)
    }

    fn send_query(&mut self, query: Query<'_>, sink: &mut ReplySink<'_>) -> Result<Reply> {
        // Before the message takes memory many times its length.
        let least = query.messages().map(|message| self.tokenizer.least_tokens(message.content)).sum();
        if least >= self.timeline.context() {
            return Err(self.full(least));
        }
        let mut prompt = self.prompt_after(&self.current, query)?;
        let mut dropped = 0;
        if prompt.steps.len() >= self.timeline.context() {
            let Some((kept, Some(shorter))) = self.slide_window(Some(query), &sink.watch)? else {
                return Err(self.full(prompt.steps.len()));
            };
            dropped = self.current.turns.len() - kept.turns.len();
            (self.current, prompt) = (kept, shorter);
        }
        let Prompt { steps, said, rewritten } = prompt;
        let question = Question { query, prompt: steps.len(), said, replaces: false };
        let reply = self.reply(question, &steps, sink)?;
        Ok(Reply { dropped: dropped + reply.dropped, rewritten, ..reply })
    }

    /// Streams another reply to the last message, which replaces the one there is.
    pub fn regenerate(&mut self, sink: &mut ReplySink<'_>) -> Result<Reply> {
        let Some((turn, before)) = self.current.turns.split_last() else { return Err(Error::NothingSaid) };
        let turn = turn.clone();
        let mut prompt = Prompt { steps: self.current.steps(), said: turn.said.clone(), rewritten: 0 };
        prompt.steps.truncate(turn.prompt);
        if turn.said.is_some() {
            // The template may be another since, or know what day it is.
            let before = Branch { system: self.current.system.clone(), turns: before.to_vec() };
            if Some(Said::new(&self.render(&before, turn.query())?.text)) != turn.said {
                prompt = self.prompt_after(&before, turn.query())?;
            }
        }
        let Prompt { steps, said, rewritten } = prompt;
        let question = Question { query: turn.query(), prompt: steps.len(), said, replaces: true };
        Ok(Reply { rewritten, ..self.reply(question, &steps, sink)? })
    }

    /// Streams a reply after `prompt`, as another turn or in place of the last one, which stays until then.
    fn reply(&mut self, mut question: Question<'_>, prompt: &[Step], sink: &mut ReplySink<'_>) -> Result<Reply> {
        let timings = self.prefill_prompt(prompt, &sink.watch)?;
        let (text, ids, stop) = (String::new(), Vec::new(), StopReason::ContextFull);
        let generation = Generation { text, held: String::new(), ids, unread: None, stop, timings };
        let mut reply = Reply { generation, dropped: 0, rewritten: 0 };
        let incomplete = loop {
            let incomplete = self.generate_until_full(question.query, &mut reply.generation, sink)?;
            let steps = self.read_pending_token(&reply.generation)?;
            if question.replaces {
                self.current.turns.pop();
            }
            let Question { query, prompt, said, .. } = &question;
            self.current.push(*query, &reply.generation.text, *prompt, said.clone(), steps);
            if reply.generation.stop != StopReason::ContextFull || !self.slide(&mut reply, &sink.watch)? {
                break incomplete;
            }
            // The turn goes on, and is replaced when its reply is longer.
            question.replaces = true;
            if let Some(turn) = self.current.turns.last() {
                (question.prompt, question.said) = (turn.prompt, turn.said.clone());
            }
        };
        if incomplete && reply.generation.stop == StopReason::ContextFull {
            reply.generation.stop = StopReason::Length;
        }
        self.show_held(&mut reply.generation, sink)?;
        self.timeline.checkpoint()?;
        Ok(reply)
    }

    /// Shows what was held back of a reply that could have gone on, and does not.
    fn show_held(&mut self, reply: &mut Generation, sink: &mut ReplySink<'_>) -> Result<()> {
        let held = std::mem::take(&mut reply.held);
        if held.is_empty() {
            return Ok(());
        }
        reply.text.push_str(&held);
        if let Some(turn) = self.current.turns.last_mut() {
            turn.reply.push_str(&held);
        }
        match (sink.text)(&held) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => reply.stop = StopReason::BrokenPipe,
            shown => shown.map_err(|e| Error::io("cannot write", "the text", e))?,
        }
        Ok(())
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

    /// Adds to `reply` until it ends, or the context does. Returns whether it falls short of its constraint then.
    fn generate_until_full(
        &mut self,
        query: Query<'_>,
        reply: &mut Generation,
        sink: &mut ReplySink<'_>,
    ) -> Result<bool> {
        let request = Request {
            history: &self.timeline.ids(),
            prompt: &[],
            limit: self.options.limit.map(|limit| limit - reply.ids.len()),
            stops: &self.format.stops,
            constraint: self.options.constraint.as_deref().or_else(|| self.held_to.of(query)),
            begun: &reply.ids,
            pauses: self.options.overflow == Overflow::Slide,
            timings: reply.timings,
            cancel: Some(sink.watch.cancel),
        };
        let Self { timeline, tokenizer, sampler, speculator, .. } = self;
        let more = generate_with(timeline, tokenizer, sampler, &request, speculator, sink.text)?;
        let (text, ids) = (reply.text.clone() + &more.text, [&*reply.ids, &more.ids].concat());
        *reply = Generation { text, ids, ..more };
        if reply.ids.is_empty() && reply.stop == StopReason::Interrupted {
            return Err(Error::Cancelled);
        }
        let incomplete = reply.stop == StopReason::Length;
        if incomplete && self.options.limit.is_none_or(|limit| reply.ids.len() < limit) {
            reply.stop = StopReason::ContextFull; // room may be made
        }
        Ok(incomplete)
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
                self.current.push(turn.query(), &turn.reply, turn.prompt, turn.said.clone(), read);
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
