//! What the model reads next: the steps so far, as they were read, as long as they are what the template says of the
//! conversation now, and the ids of the rest.

use super::{
    Branch, Conversation,
    branch::Query,
    format::{Format, Said},
};
use crate::{
    Result,
    engine::timeline::{Step, prefilled},
    text::{Inputs, Message, Rendered, Role},
};

/// A prompt to read.
pub(super) struct Prompt {
    /// From the beginning of the conversation on.
    pub steps: Vec<Step>,
    /// The text that they are the ids of.
    pub said: Option<Said>,
    /// How many of the steps so far are given up, because the template says now in another way what was said.
    pub rewritten: usize,
}

impl Conversation<'_> {
    /// Returns the prompt that leads to a reply to `query`, after the turns of `branch`. What was read stays as it was read,
    /// as far as the text is the same: to the end of the last prompt that is, and of the reply to it.
    pub(super) fn prompt_after(&self, branch: &Branch, query: Query<'_>) -> Result<Prompt> {
        let rendered = self.render(branch, query)?;
        let said = Some(Said::new(&rendered.text));
        let Some(last) = branch.turns.last() else {
            let ids = self.encode_after(&rendered, None)?;
            return Ok(Prompt { steps: prefilled(&ids).collect(), said, rewritten: 0 });
        };
        let (mut steps, mut read, mut goes_on) = (Vec::new(), None, false);
        if let Some((at, bytes)) = self.last_said(branch, &rendered.text)? {
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
            // Read again it is as the template says it.
            read = Some(if kept > 0 { rendered.text.len() - after.len() } else { bytes });
            goes_on = at + 1 == branch.turns.len() && rest.starts_with(last.reply.trim_end());
        }
        let rewritten = if goes_on { 0 } else { branch.end().saturating_sub(steps.len()) };
        steps.extend(prefilled(&self.encode_after(&rendered, read)?));
        Ok(Prompt { steps, said, rewritten })
    }

    /// Returns the text of `branch` and `query`, to the point where the model replies.
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

    /// Returns the ids of `rendered` after its first `read` bytes, which were read already; `None`: from the beginning on.
    fn encode_after(&self, rendered: &Rendered, read: Option<usize>) -> Result<Vec<u32>> {
        let start = read.unwrap_or(0);
        let literal = rendered.literal_after(start);
        let text = rendered.text.get(start..).unwrap_or_default();
        let ids = self.tokenizer.encode_literal(text, &literal, &self.format.markers, read.is_some())?;
        let with_bos = read.is_none() && self.options.template.is_none();
        Ok(if with_bos { self.tokenizer.with_bos(ids) } else { ids })
    }

    /// Returns the turn whose prompt reaches farthest of those with which `text` begins, and how long that prompt's text is.
    fn last_said(&self, branch: &Branch, text: &str) -> Result<Option<(usize, usize)>> {
        let Some((last, before)) = branch.turns.split_last() else { return Ok(None) };
        let said = match &last.said {
            Some(said) => said.clone(),
            // Version 0.1 saved it: the template was this one.
            None => {
                let before = Branch { system: branch.system.clone(), turns: before.to_vec() };
                Said::new(&self.render(&before, last.query())?.text)
            }
        };
        if said.begins(text) {
            return Ok(Some((before.len(), said.bytes)));
        }
        // All others, in one pass over the text.
        let known = before.iter().enumerate().filter_map(|(i, turn)| Some((turn.said.as_ref()?, i, turn.prompt)));
        let mut known: Vec<_> = known.filter(|(said, ..)| said.bytes <= text.len()).collect();
        known.sort_by_key(|(said, ..)| said.bytes);
        let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
        let same = known.into_iter().filter(|(said, ..)| {
            hasher.update(&text.as_bytes()[hashed..said.bytes]);
            hashed = said.bytes;
            *hasher.finalize().to_hex() == *said.hash
        });
        Ok(same.max_by_key(|&(.., prompt)| prompt).map(|(said, i, _)| (i, said.bytes)))
    }
}

/// Returns what was said as one text: a message begins a line, a reply goes on where the message ends.
fn running_text(branch: &Branch, query: Query<'_>) -> String {
    let mut text = branch.system.clone().unwrap_or_default();
    let mut begin_line = branch.system.is_some();
    let turns = branch.turns.iter().map(|turn| (turn.query(), &*turn.reply)).chain([(query, "")]);
    for (query, reply) in turns {
        for message in query.messages() {
            if std::mem::replace(&mut begin_line, true) {
                text.push('\n');
            }
            text.push_str(message.content);
        }
        text.push_str(reply);
        begin_line = !reply.ends_with('\n');
    }
    text
}
