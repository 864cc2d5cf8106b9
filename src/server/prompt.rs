//! Converts messages to the tokens of a prompt. Message contents never become control tokens. Earlier answers of this
//! server keep the ids with which they were generated, so that their state can be reused.

use super::{
    answers::{Answers, Entry},
    error::ApiError,
    messages::ChatMessage,
};
use crate::{
    Result,
    engine::Model,
    text::{Inputs, Markers, Message, Rendered, Role, Template, Tokenizer, Tools},
};

/// A model's chat template and its properties.
pub struct ChatFormat {
    template: Template,
    markers: Markers,
    /// White space that the template puts before a reply. The model may generate it or not; either is kept.
    indent: String,
    /// Stop strings of the template.
    pub stops: Vec<String>,
    /// Whether the template supports tools.
    takes_tools: bool,
}

/// A prompt.
pub struct Prompt {
    /// The rendered text.
    pub text: String,
    /// Its token ids.
    pub ids: Vec<u32>,
}

impl ChatFormat {
    /// Returns the chat format of `model`, if it has a template.
    pub fn of(model: &Model, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(template) = model.chat_template(tokenizer)? else { return Ok(None) };
        let (stops, markers) = (template.stops()?, tokenizer.markers(&template.markers())?);
        let (indent, takes_tools) = (template.reply_indent(), template.takes_tools()?);
        Ok(Some(Self { markers, indent, stops, takes_tools, template }))
    }

    /// Renders `messages` and `tools` up to the start of the reply.
    pub fn render(&self, messages: &[ChatMessage], tools: Option<&Tools>) -> Result<Rendered> {
        let messages: Vec<_> =
            messages.iter().map(|message| Message::new(message.role, self.content(message))).collect();
        let inputs = Inputs { messages: &messages, tools, ..Inputs::default() };
        self.template.render_literal(inputs, true, &self.markers)
    }

    /// Rejects tools if the template does not support them.
    pub fn check_tools(&self, tools: Option<&Tools>) -> std::result::Result<(), ApiError> {
        if tools.is_none() || self.takes_tools {
            return Ok(());
        }
        Err(ApiError::unsupported("tools", "the model's chat template does not support tools"))
    }

    /// Returns the content of a message for the template, without white space that the template adds itself.
    fn content<'s>(&self, message: &'s ChatMessage) -> &'s str {
        let indented = if message.role == Role::Assistant { message.content.strip_prefix(&*self.indent) } else { None };
        indented.unwrap_or(&message.content)
    }

    /// Returns the prompt for `messages`, reusing the ids of `owner`'s earlier chats in `answers` as far as possible.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        answers: &Answers,
        owner: &str,
        messages: &[ChatMessage],
        tools: Option<&Tools>,
    ) -> Result<Prompt> {
        let rendered = self.render(messages, tools)?;
        let (mut ids, mut read) = (Vec::new(), None);
        if let Some(Entry { bytes, prompt, answers }) = answers.find(owner, &rendered.text) {
            let rest = &rendered.text[bytes..];
            // The answer that matches the text the furthest.
            let farthest = answers.iter().map(|answer| {
                let rest = if answer.indented { rest } else { rest.strip_prefix(&*self.indent).unwrap_or(rest) };
                let (kept, after) = tokenizer.ids_within(&prompt, &answer.ids, rest);
                (kept, after.len(), &answer.ids[..kept])
            });
            let farthest = farthest.max_by_key(|&(kept, ..)| kept).filter(|&(kept, ..)| kept > 0);
            ids = prompt.to_vec();
            // The rest is tokenized as the template renders it.
            read = Some(farthest.map_or(bytes, |(_, left, _)| rendered.text.len() - left));
            ids.extend(farthest.map(|(.., kept)| kept).unwrap_or_default());
        }
        let start = read.unwrap_or(0);
        let literal = rendered.literal_after(start);
        let text = rendered.text.get(start..).unwrap_or_default();
        ids.extend(tokenizer.encode_literal(text, &literal, &self.markers, read.is_some())?);
        Ok(Prompt { text: rendered.text, ids })
    }

    /// Whether `answer` starts with the white space that the template puts before a reply.
    pub fn is_indented(&self, answer: &str) -> bool {
        answer.starts_with(&*self.indent)
    }
}
