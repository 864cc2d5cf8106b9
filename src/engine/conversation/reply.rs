//! Generation of replies.

use std::{io, time::Instant};

use super::{Branch, Conversation, Overflow, branch::Query, format::Fingerprint, prompt::Prompt};
use crate::{
    Error, Result,
    engine::{
        generate::{Generation, Request, StopReason, Timings, TokenModel, generate_with},
        timeline::{Step, Watch, prefilled},
    },
    text::{Call, parse_reply},
};

/// Receives a streamed reply.
pub struct ReplySink<'a> {
    /// Cancels the reply and receives the progress of long prefills.
    pub watch: Watch<'a>,
    /// Receives the text as it is generated, see [`generate`](crate::generate).
    pub text: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

/// A finished reply.
pub struct Reply {
    /// Its text, stop reason and timings.
    pub generation: Generation,
    /// Number of turns dropped to make room.
    pub dropped: usize,
    /// Number of processed tokens discarded because the template now renders the history differently.
    pub rewritten: usize,
}

/// What a reply responds to.
struct Question<'a> {
    query: Query<'a>,
    /// The number of steps of the prompt, and its text.
    prompt: usize,
    fingerprint: Option<Fingerprint>,
    /// Whether the reply replaces the last one.
    replaces: bool,
}

impl Conversation<'_> {
    /// Sends `message` and streams the reply. A message that is cancelled before its reply begins leaves no trace.
    pub fn send(&mut self, message: &str, sink: &mut ReplySink<'_>) -> Result<Reply> {
        self.send_query(Query::User(message), sink)
    }

    /// Returns the tool calls of the last reply, which await results.
    pub fn calls(&self) -> Vec<Call> {
        match (self.current.turns.last(), self.tools()) {
            (Some(turn), Some(tools)) => parse_reply(&turn.reply, tools).calls,
            _ => Vec::new(),
        }
    }

    /// Sends one result for each tool call of the last reply, in order, and streams the reply like [`Self::send`].
    pub fn send_results(&mut self, results: &[String], sink: &mut ReplySink<'_>) -> Result<Reply> {
        let calls = self.calls().len();
        if calls == 0 {
            return Err(Error::Request("the last reply does not call a tool".into()));
        }
        if results.len() != calls {
            let given = results.len();
            return Err(Error::Request(format!("expected one result per tool call: {calls} calls, {given} results")));
        }
        self.send_query(Query::Results(results), sink)
    }

    fn send_query(&mut self, query: Query<'_>, sink: &mut ReplySink<'_>) -> Result<Reply> {
        // Checked first, since processing the message takes many times its length in memory.
        let least = query.messages().map(|message| self.tokenizer.least_tokens(message.content)).sum();
        if least >= self.timeline.context() {
            return Err(self.context_full_error(least));
        }
        let mut prompt = self.prompt_after(&self.current, query)?;
        let mut dropped = 0;
        if prompt.steps.len() >= self.timeline.context() {
            let Some((kept, Some(shorter))) = self.slide_window(Some(query), &sink.watch)? else {
                return Err(self.context_full_error(prompt.steps.len()));
            };
            dropped = self.current.turns.len() - kept.turns.len();
            (self.current, prompt) = (kept, shorter);
        }
        let Prompt { steps, fingerprint, rewritten } = prompt;
        let question = Question { query, prompt: steps.len(), fingerprint, replaces: false };
        let reply = self.reply(question, &steps, sink)?;
        Ok(Reply { dropped: dropped + reply.dropped, rewritten, ..reply })
    }

    /// Regenerates the reply to the last message and replaces the previous one.
    pub fn regenerate(&mut self, sink: &mut ReplySink<'_>) -> Result<Reply> {
        let Some((turn, before)) = self.current.turns.split_last() else { return Err(Error::NoTurns) };
        let turn = turn.clone();
        let mut prompt = Prompt { steps: self.current.steps(), fingerprint: turn.fingerprint.clone(), rewritten: 0 };
        prompt.steps.truncate(turn.prompt);
        if turn.fingerprint.is_some() {
            // The template may have changed, or may depend on the date.
            let before = Branch { system: self.current.system.clone(), turns: before.to_vec() };
            if Some(Fingerprint::new(&self.render(&before, turn.query())?.text)) != turn.fingerprint {
                prompt = self.prompt_after(&before, turn.query())?;
            }
        }
        let Prompt { steps, fingerprint, rewritten } = prompt;
        let question = Question { query: turn.query(), prompt: steps.len(), fingerprint, replaces: true };
        Ok(Reply { rewritten, ..self.reply(question, &steps, sink)? })
    }

    /// Streams a reply after `prompt`, as a new turn or in place of the last one, which is kept until then.
    fn reply(&mut self, mut question: Question<'_>, prompt: &[Step], sink: &mut ReplySink<'_>) -> Result<Reply> {
        let timings = self.prefill_prompt(prompt, &sink.watch)?;
        let (text, ids, stop) = (String::new(), Vec::new(), StopReason::ContextFull);
        let generation = Generation { text, held: String::new(), ids, unprocessed: None, stop, timings };
        let mut reply = Reply { generation, dropped: 0, rewritten: 0 };
        let incomplete = loop {
            let incomplete = self.generate_until_full(question.query, &mut reply.generation, sink)?;
            let steps = self.read_pending_token(&reply.generation)?;
            if question.replaces {
                self.current.turns.pop();
            }
            let Question { query, prompt, fingerprint, .. } = &question;
            self.current.push(*query, &reply.generation.text, *prompt, fingerprint.clone(), steps);
            if reply.generation.stop != StopReason::ContextFull || !self.slide(&mut reply, &sink.watch)? {
                break incomplete;
            }
            // The turn exists from here on and is replaced when its reply grows.
            question.replaces = true;
            if let Some(turn) = self.current.turns.last() {
                (question.prompt, question.fingerprint) = (turn.prompt, turn.fingerprint.clone());
            }
        };
        if incomplete && reply.generation.stop == StopReason::ContextFull {
            reply.generation.stop = StopReason::Length;
        }
        self.show_held(&mut reply.generation, sink)?;
        self.timeline.checkpoint()?;
        Ok(reply)
    }

    /// Outputs held-back text of a reply that could have continued but does not.
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

    /// Processes the part of the prompt that is not processed yet, and returns its timings.
    fn prefill_prompt(&mut self, prompt: &[Step], watch: &Watch<'_>) -> Result<Timings> {
        let start = Instant::now();
        let before = self.timeline.evaluated();
        self.timeline.seek(prompt, watch)?;
        self.timeline.checkpoint()?;
        let prompt_tokens = self.timeline.evaluated() - before;
        Ok(Timings { prompt_tokens, prompt: start.elapsed(), ..Timings::default() })
    }

    /// Extends `reply` until it ends or the context is full. Returns whether its constraint is then unsatisfied.
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
            constraint: self.options.constraint.as_deref().or_else(|| self.call_constraints.of(query)),
            generated: &reply.ids,
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
            reply.stop = StopReason::ContextFull; // the caller may make room
        }
        Ok(incomplete)
    }

    /// Processes the last token of `reply`, unless the text ended before it. Returns all steps, including that token if
    /// it did not fit.
    fn read_pending_token(&mut self, reply: &Generation) -> Result<Vec<Step>> {
        let is_cut = matches!(reply.stop, StopReason::StopString | StopReason::BrokenPipe);
        let pending = reply.unprocessed.filter(|_| !is_cut);
        let context_full_error = self.timeline.tokens() >= self.timeline.context();
        if let Some(id) = pending.filter(|_| !context_full_error) {
            self.timeline.decode(id)?;
        }
        let mut steps = self.timeline.steps().to_vec();
        if reply.stop == StopReason::ContextFull && self.options.overflow == Overflow::Slide {
            steps.extend(prefilled(pending.as_slice()));
        }
        Ok(steps)
    }

    /// Drops the oldest turns if that makes room for the rest of `reply`, and reprocesses the remaining ones. Returns
    /// whether the reply can continue.
    fn slide(&mut self, reply: &mut Reply, watch: &Watch<'_>) -> Result<bool> {
        let window = match self.slide_window(None, watch) {
            Err(Error::Cancelled) => {
                reply.generation.stop = StopReason::Interrupted;
                None
            }
            window => window?,
        };
        let Some((kept, _)) = window else {
            // There was no room for the pending token either.
            let read = self.timeline.steps().to_vec();
            if let Some(turn) = self.current.turns.pop() {
                self.current.push(turn.query(), &turn.reply, turn.prompt, turn.fingerprint.clone(), read);
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
