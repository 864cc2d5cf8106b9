//! What the model reads next: the steps so far, as they were read, and the ids of what is new.

use super::{Branch, Conversation};
use crate::{
    Result,
    engine::timeline::{Step, prefilled},
    text::{Message, Role},
};

impl Conversation<'_> {
    /// Returns the steps that lead to a reply to `message`, after the turns of `branch`. What was read stays as it was
    /// read, as far as the template renders it so; only a template that rewrites what was said makes everything new.
    pub(super) fn prompt_after(&self, branch: &Branch, message: &str) -> Result<Vec<Step>> {
        let Some(last) = branch.turns.last() else { return self.first_prompt(branch, message) };
        let expected = match &self.options.template {
            None => {
                let line_break = if last.reply.ends_with('\n') { "" } else { "\n" };
                format!("{}{line_break}{message}", last.reply)
            }
            Some(template) => {
                let mut messages = branch.messages();
                messages.pop(); // the last reply
                match template.between(&messages, message)? {
                    Some(between) if between.strips => last.reply.trim_end().to_owned() + &between.text,
                    Some(between) => last.reply.clone() + &between.text,
                    None => return self.first_prompt(branch, message),
                }
            }
        };
        self.continued(branch.steps(), last.prompt, &expected)
    }

    /// Returns the prompt made of everything at once.
    fn first_prompt(&self, branch: &Branch, message: &str) -> Result<Vec<Step>> {
        let mut messages = branch.messages();
        messages.push(Message::new(Role::User, message));
        let ids = match &self.options.template {
            Some(template) => self.tokenizer.encode(&template.render(&messages, true)?, false)?,
            None => {
                let texts: Vec<_> = messages.iter().map(|message| message.content).collect();
                self.tokenizer.encode(&texts.join("\n"), true)?
            }
        };
        Ok(prefilled(&ids).collect())
    }

    /// Returns `steps`, as long as the text after the first `prompt` of them is how `expected` begins, and the rest of it.
    fn continued(&self, mut steps: Vec<Step>, prompt: usize, expected: &str) -> Result<Vec<Step>> {
        let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
        let (before, generated) = ids.split_at(prompt);
        let (kept, rest) = self.tokenizer.ids_within(before, generated, expected);
        steps.truncate(prompt + kept);
        steps.extend(prefilled(&self.tokenizer.encode_more(rest)?));
        Ok(steps)
    }
}
