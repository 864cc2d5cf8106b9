//! Builds the next prompt: the steps so far that still match what the template renders, then the token ids of the rest.

use super::{
    Branch, Conversation,
    branch::Query,
    format::{Fingerprint, Format},
};
use crate::{
    Result,
    engine::timeline::{Step, prefilled},
    text::{Inputs, Message, Rendered, Role},
};

/// A prompt to process.
pub(super) struct Prompt {
    /// All steps from the start of the conversation.
    pub steps: Vec<Step>,
    /// The fingerprint of its text.
    pub fingerprint: Option<Fingerprint>,
    /// Number of steps discarded because the template now renders the history differently.
    pub rewritten: usize,
}

impl Conversation<'_> {
    /// Returns the prompt for a reply to `query` after the turns of `branch`. Steps are reused up to the last prompt
    /// that the new text starts with, and up to the end of the reply to it.
    pub(super) fn prompt_after(&self, branch: &Branch, query: Query<'_>) -> Result<Prompt> {
        let rendered = self.render(branch, query)?;
        let fingerprint = Some(Fingerprint::new(&rendered.text));
        let Some(last) = branch.turns.last() else {
            let ids = self.encode_after(&rendered, None)?;
            return Ok(Prompt { steps: prefilled(&ids).collect(), fingerprint, rewritten: 0 });
        };
        let (mut steps, mut read, mut continues) = (Vec::new(), None, false);
        if let Some((at, bytes)) = self.last_matching_prompt(branch, &rendered.text)? {
            let turn = &branch.turns[at];
            steps = branch.steps_of(at + 1);
            let mut rest = rendered.text.get(bytes..).unwrap_or_default();
            if !turn.reply.starts_with(&*self.format.indent) {
                rest = rest.strip_prefix(&*self.format.indent).unwrap_or(rest);
            }
            let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
            let (before, generated) = ids.split_at(turn.prompt);
            let (kept, after) = self.tokenizer.ids_within(before, generated, rest);
            steps.truncate(turn.prompt + kept);
            // The reply is re-encoded as the template renders it.
            read = Some(if kept > 0 { rendered.text.len() - after.len() } else { bytes });
            continues = at + 1 == branch.turns.len() && rest.starts_with(last.reply.trim_end());
        }
        let rewritten = if continues { 0 } else { branch.end().saturating_sub(steps.len()) };
        steps.extend(prefilled(&self.encode_after(&rendered, read)?));
        Ok(Prompt { steps, fingerprint, rewritten })
    }

    /// Renders `branch` and `query` up to the start of the reply.
    pub(super) fn render(&self, branch: &Branch, query: Query<'_>) -> Result<Rendered> {
        let Format { markers, indent, .. } = &self.format;
        let parse_special = self.options.parse_special;
        let Some(template) = &self.options.template else {
            let text = running_text(branch, query);
            return Ok(if parse_special {
                Rendered { text, literal: Vec::new() }
            } else {
                Rendered::running(text, markers)
            });
        };
        let mut messages: Vec<_> = branch.system.iter().map(|text| Message::new(Role::System, text)).collect();
        for turn in &branch.turns {
            messages.extend(turn.query().messages());
            let reply = turn.reply.strip_prefix(&**indent).unwrap_or(&turn.reply);
            messages.push(Message::new(Role::Assistant, reply));
        }
        messages.extend(query.messages());
        let inputs = Inputs { messages: &messages, tools: self.tools(), contexts: &self.contexts, parse_special };
        template.render_literal(inputs, true, markers)
    }

    /// Returns the token ids of `rendered` after its first `read` bytes; `None`: of all of it.
    fn encode_after(&self, rendered: &Rendered, read: Option<usize>) -> Result<Vec<u32>> {
        let start = read.unwrap_or(0);
        let literal = rendered.literal_after(start);
        let text = rendered.text.get(start..).unwrap_or_default();
        let ids = self.tokenizer.encode_literal(text, &literal, &self.format.markers, read.is_some())?;
        let with_bos = read.is_none() && self.options.template.is_none();
        Ok(if with_bos { self.tokenizer.with_bos(ids) } else { ids })
    }

    /// Returns the last turn whose prompt `text` starts with, and the length of that prompt in bytes.
    fn last_matching_prompt(&self, branch: &Branch, text: &str) -> Result<Option<(usize, usize)>> {
        let Some((last, before)) = branch.turns.split_last() else { return Ok(None) };
        let fingerprint = match &last.fingerprint {
            Some(fingerprint) => fingerprint.clone(),
            // A session of version 0.1, which was saved with this template.
            None => {
                let before = Branch { system: branch.system.clone(), turns: before.to_vec() };
                Fingerprint::new(&self.render(&before, last.query())?.text)
            }
        };
        if fingerprint.is_prefix_of(text) {
            return Ok(Some((before.len(), fingerprint.bytes)));
        }
        // All other prompts, in one pass over the text.
        let candidates =
            before.iter().enumerate().filter_map(|(i, turn)| Some((turn.fingerprint.as_ref()?, i, turn.prompt)));
        let mut candidates: Vec<_> = candidates.filter(|(fingerprint, ..)| fingerprint.bytes <= text.len()).collect();
        candidates.sort_by_key(|(fingerprint, ..)| fingerprint.bytes);
        let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
        let matching = candidates.into_iter().filter(|(fingerprint, ..)| {
            hasher.update(&text.as_bytes()[hashed..fingerprint.bytes]);
            hashed = fingerprint.bytes;
            *hasher.finalize().to_hex() == *fingerprint.hash
        });
        Ok(matching.max_by_key(|&(.., prompt)| prompt).map(|(fingerprint, i, _)| (i, fingerprint.bytes)))
    }
}

/// Returns the conversation as plain text, used without a template: each message starts a line, and the reply continues
/// it.
fn running_text(branch: &Branch, query: Query<'_>) -> String {
    let mut text = branch.system.clone().unwrap_or_default();
    let mut needs_newline = branch.system.is_some();
    let turns = branch.turns.iter().map(|turn| (turn.query(), &*turn.reply)).chain([(query, "")]);
    for (query, reply) in turns {
        for message in query.messages() {
            if std::mem::replace(&mut needs_newline, true) {
                text.push('\n');
            }
            text.push_str(message.content);
        }
        text.push_str(reply);
        needs_newline = !reply.ends_with('\n');
    }
    text
}
