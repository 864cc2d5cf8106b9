//! What the model reads next: the steps so far, as they were read, and the ids of what is new.

use super::{Branch, Conversation, Step, Turn, prefilled};
use crate::{
    Result,
    text::{Message, Role, Template},
};

impl Conversation<'_> {
    /// The steps that lead to a reply to `message`, after the turns of `branch`. What was read stays as it was read, as
    /// far as it is what the template says; only a template that rewrites what was said makes everything new.
    pub(super) fn prompt_after(&self, branch: &Branch, message: &str) -> Result<Vec<Step>> {
        let Some(last) = branch.turns.last() else { return self.first_prompt(branch, message) };
        let expected = match &self.options.template {
            None => {
                let line_break = if last.reply.ends_with('\n') { "" } else { "\n" };
                format!("{}{line_break}{message}", last.reply)
            }
            Some(template) => {
                let mut messages = messages(branch);
                messages.pop(); // the last reply
                match template.between(&messages, message)? {
                    Some(between) if between.strips => last.reply.trim_end().to_owned() + &between.text,
                    Some(between) => last.reply.clone() + &between.text,
                    None => return self.first_prompt(branch, message),
                }
            }
        };
        self.continued(last, &expected)
    }

    /// The prompt made of everything at once.
    fn first_prompt(&self, branch: &Branch, message: &str) -> Result<Vec<Step>> {
        let said = messages(branch);
        let ids = match &self.options.template {
            Some(template) => render(template, &said, message).and_then(|text| self.tokenizer.encode(&text, false))?,
            None => {
                let texts = said.iter().map(|m| m.content).chain([message]);
                self.tokenizer.encode(&texts.collect::<Vec<_>>().join("\n"), true)?
            }
        };
        Ok(prefilled(&ids).collect())
    }

    /// The steps of `turn`, as long as the text after its prompt is how `expected` begins, and the rest of it.
    fn continued(&self, turn: &Turn, expected: &str) -> Result<Vec<Step>> {
        let (prompt, reply) = turn.steps.split_at(turn.prompt);
        let mut stream = self.tokenizer.stream();
        prompt.iter().for_each(|step| drop(stream.push(step.id)));
        let (mut rest, mut kept, mut kept_rest) = (expected, 0, expected);
        for (i, step) in reply.iter().enumerate() {
            let Some(after) = rest.strip_prefix(&*stream.push(step.id)) else { break };
            rest = after;
            if stream.is_whole() {
                (kept, kept_rest) = (i + 1, rest);
            }
        }
        let mut steps = turn.steps[..turn.prompt + kept].to_vec();
        steps.extend(prefilled(&self.tokenizer.encode_more(kept_rest)?));
        Ok(steps)
    }
}

/// What was said so far.
fn messages(branch: &Branch) -> Vec<Message<'_>> {
    let system = branch.system.iter().map(|text| Message::new(Role::System, text));
    let turns = branch.turns.iter();
    let turns = turns.flat_map(|t| [Message::new(Role::User, &t.user), Message::new(Role::Assistant, &t.reply)]);
    system.chain(turns).collect()
}

fn render(template: &Template, said: &[Message<'_>], message: &str) -> Result<String> {
    template.render(&[said, &[Message::new(Role::User, message)]].concat(), true)
}
