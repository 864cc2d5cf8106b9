//! From messages to the ids that the model reads. The contents of messages never become control tokens. Answers that this
//! server gave before keep the ids that they were generated as, so that the scheduler knows the state after them.

use super::{
    answers::{Answers, Known},
    error::ApiError,
    messages::Said,
};
use crate::{
    Result,
    engine::Model,
    text::{Inputs, Markers, Message, Rendered, Role, Template, Tokenizer, Tools},
};

/// The chat template of a model, and what follows from it.
pub struct ChatFormat {
    template: Template,
    markers: Markers,
    /// White space that the template says between a prompt and the reply to it. The model may say it, or not: it stays so.
    indent: String,
    /// The strings that end a reply.
    pub stops: Vec<String>,
    /// Whether it has a place for tools.
    takes_tools: bool,
}

/// A prompt.
pub struct Prompt {
    /// The text that the template makes.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
}

impl ChatFormat {
    /// Returns the format of chats with `model`, if it has one.
    pub fn of(model: &Model, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(template) = model.chat_template(tokenizer)? else { return Ok(None) };
        let (stops, markers) = (template.stops()?, tokenizer.markers(&template.markers())?);
        let (indent, takes_tools) = (template.reply_indent(), template.takes_tools()?);
        Ok(Some(Self { markers, indent, stops, takes_tools, template }))
    }

    /// Returns the text of `messages`, by a model that may call `tools`, to the point where the model replies.
    pub fn render(&self, messages: &[Said], tools: Option<&Tools>) -> Result<Rendered> {
        let messages: Vec<_> = messages.iter().map(|said| Message::new(said.role, self.content(said))).collect();
        let inputs = Inputs { messages: &messages, tools, ..Inputs::default() };
        self.template.render_literal(inputs, true, &self.markers)
    }

    /// Refuses tools if the template has no place for them.
    pub fn check_tools(&self, tools: Option<&Tools>) -> std::result::Result<(), ApiError> {
        if tools.is_none() || self.takes_tools {
            return Ok(());
        }
        Err(ApiError::unsupported("tools", "the model's chat template has no place for tools"))
    }

    /// Returns what the template gets of a message: white space before a reply it says itself.
    fn content<'s>(&self, said: &'s Said) -> &'s str {
        let indented = if said.role == Role::Assistant { said.content.strip_prefix(&*self.indent) } else { None };
        indented.unwrap_or(&said.content)
    }

    /// Returns the prompt of `messages`, which goes on as far as possible after what `answers` knows of `owner`'s chats.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        answers: &Answers,
        owner: &str,
        messages: &[Said],
        tools: Option<&Tools>,
    ) -> Result<Prompt> {
        let rendered = self.render(messages, tools)?;
        let (mut ids, mut read) = (Vec::new(), None);
        if let Some(Known { bytes, prompt, answers }) = answers.find(owner, &rendered.text) {
            let rest = &rendered.text[bytes..];
            // The answer whose text goes on the farthest as the text does.
            let farthest = answers.iter().map(|answer| {
                let rest = if answer.indented { rest } else { rest.strip_prefix(&*self.indent).unwrap_or(rest) };
                let (kept, after) = tokenizer.ids_within(&prompt, &answer.ids, rest);
                (kept, after.len(), &answer.ids[..kept])
            });
            let farthest = farthest.max_by_key(|&(kept, ..)| kept).filter(|&(kept, ..)| kept > 0);
            ids = prompt.to_vec();
            // What is read again is as the template says it.
            read = Some(farthest.map_or(bytes, |(_, left, _)| rendered.text.len() - left));
            ids.extend(farthest.map(|(.., kept)| kept).unwrap_or_default());
        }
        let start = read.unwrap_or(0);
        let literal = rendered.literal_after(start);
        let text = rendered.text.get(start..).unwrap_or_default();
        ids.extend(tokenizer.encode_literal(text, &literal, &self.markers, read.is_some())?);
        Ok(Prompt { text: rendered.text, ids })
    }

    /// Whether `answer` begins with the white space that the template says before a reply.
    pub fn is_indented(&self, answer: &str) -> bool {
        answer.starts_with(&*self.indent)
    }
}
