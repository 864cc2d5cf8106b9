//! Chat templates: Jinja source that renders messages to a prompt, as in Hugging Face's tokenizers.

use std::sync::{Arc, atomic::AtomicBool};

use serde_json::{Value, json};

use super::{
    Tokenizer, Tools, calls,
    jinja::{Failure, Program, Variables},
};
use crate::{Error, Result, limits};

/// A message that occurs in no text, to find where the template puts messages.
const MARK: &str = "\u{e000}message\u{e001}";

/// The role of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool, with the result of a call.
    Tool,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its role.
    pub role: Role,
    /// Its text.
    pub content: &'a str,
}

impl<'a> Message<'a> {
    /// Returns a message.
    pub fn new(role: Role, content: &'a str) -> Self {
        Self { role, content }
    }
}

/// The inputs of a template.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs<'a> {
    /// The messages.
    pub messages: &'a [Message<'a>],
    /// The tools that the model may call.
    pub tools: Option<&'a Tools>,
    /// Texts to answer from.
    pub contexts: &'a [String],
    /// Whether markers in messages are parsed as such, except in tool results; otherwise they are plain text.
    pub parse_special: bool,
}

impl<'a> From<&'a [Message<'a>]> for Inputs<'a> {
    fn from(messages: &'a [Message<'a>]) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl<'a> From<&'a Vec<Message<'a>>> for Inputs<'a> {
    fn from(messages: &'a Vec<Message<'a>>) -> Self {
        messages.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [Message<'a>; N]> for Inputs<'a> {
    fn from(messages: &'a [Message<'a>; N]) -> Self {
        messages.as_slice().into()
    }
}

impl Inputs<'_> {
    /// Returns the template's variables. `map` is applied to each untrusted text, in order: message contents, contexts,
    /// and strings of tools that `may_hold` a marker. The call tags of replies are trusted if there are tools.
    pub(super) fn variables(
        &self,
        ask: bool,
        may_hold: &dyn Fn(&str) -> bool,
        map: &mut dyn FnMut(&str) -> String,
    ) -> Variables {
        let mut variables = Variables::new();
        let messages = self.messages.iter().map(|&Message { role, content }| {
            let content = match role {
                Role::Tool => map(content),
                _ if self.parse_special => content.into(),
                Role::Assistant if self.tools.is_some() => {
                    let (mut mapped, mut at) = (String::new(), 0);
                    for tag in calls::tags(content) {
                        mapped += &map(&content[at..tag.start]);
                        mapped += &content[tag.clone()];
                        at = tag.end;
                    }
                    mapped + &map(&content[at..])
                }
                _ => map(content),
            };
            json!({ "role": role.name(), "content": content })
        });
        variables.insert("messages".into(), messages.collect());
        variables.insert("add_generation_prompt".into(), ask.into());
        if !self.contexts.is_empty() {
            let contexts: Vec<String> = self.contexts.iter().map(|text| map(text)).collect();
            // Hymba's name for them, and that of the transformers library.
            let documents = contexts.iter().map(|text| json!({ "title": "", "text": text }));
            variables.insert("documents".into(), documents.collect());
            variables.insert("contexts".into(), contexts.into());
        }
        if let Some(tools) = self.tools {
            let mut tools = tools.to_value();
            map_texts(&mut tools, &mut |text| if may_hold(text) { map(text) } else { text.into() });
            variables.insert("tools".into(), tools);
        }
        variables
    }
}

/// Applies `map` to every string in `value`, including keys.
fn map_texts(value: &mut Value, map: &mut dyn FnMut(&str) -> String) {
    match value {
        Value::String(text) => *text = map(text),
        Value::Array(items) => items.iter_mut().for_each(|item| map_texts(item, map)),
        Value::Object(fields) => {
            let mapped = std::mem::take(fields).into_iter().map(|(key, mut value)| {
                let key = map(&key);
                map_texts(&mut value, map);
                (key, value)
            });
            *fields = mapped.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct Template {
    program: Program,
    source: String,
    /// Its origin, for error messages.
    origin: String,
    /// The BOS and EOS tokens.
    bos: String,
    eos: String,
    /// Cancels rendering.
    cancel: Option<Arc<AtomicBool>>,
}

impl Tokenizer {
    /// Parses a chat template for this tokenizer; `origin` is used in error messages. The tokenizer's cancellation flag
    /// also cancels rendering.
    pub fn template(&self, source: &str, origin: &str) -> Result<Template> {
        let template = Template::new(source, origin, &self.name(self.bos()), &self.name(self.eos()))?;
        Ok(Template { cancel: self.cancel.clone(), ..template })
    }
}

impl Template {
    /// Parses `source`; `origin` is used in error messages, `bos` and `eos` are the names of the BOS and EOS tokens.
    pub fn new(source: &str, origin: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > limits::TEMPLATE {
            let (bytes, limit) = (source.len(), limits::TEMPLATE / limits::MB);
            return Err(Error::format(
                origin,
                format!("has a chat template of {bytes} bytes; the limit is {limit} MB; use a shorter one"),
            ));
        }
        let program = Program::parse(source).map_err(|failure| bad(origin, failure))?;
        Ok(Self {
            program,
            source: source.into(),
            origin: origin.into(),
            bos: bos.into(),
            eos: eos.into(),
            cancel: None,
        })
    }

    /// Sets a flag that cancels rendering with [`Error::Cancelled`].
    pub fn cancelled_by(self, cancel: &Arc<AtomicBool>) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }

    /// Fails if rendering is cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        self.cancel.as_deref().map_or(Ok(()), Error::check_cancelled)
    }

    /// Returns the Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders `inputs`, which can be just messages; `ask` adds the generation prompt.
    pub fn render<'a>(&self, inputs: impl Into<Inputs<'a>>, ask: bool) -> Result<String> {
        self.render_with(&inputs.into().variables(ask, &|_| false, &mut str::to_owned))
    }

    /// Whether the template supports tools.
    pub fn takes_tools(&self) -> Result<bool> {
        self.takes(Inputs { tools: Some(&Tools::sample()), ..Inputs::default() })
    }

    /// Whether the template supports contexts.
    pub fn takes_contexts(&self) -> Result<bool> {
        self.takes(Inputs { contexts: &[MARK.into()], ..Inputs::default() })
    }

    /// Whether `inputs` without messages change the rendering of a message.
    fn takes(&self, inputs: Inputs<'_>) -> Result<bool> {
        let messages = [Message::new(Role::User, "a")];
        Ok(self.render(Inputs { messages: &messages, ..inputs }, true)? != self.render(&messages, true)?)
    }

    /// Renders the template with arbitrary variables: `messages`, `tools`, `documents`, `add_generation_prompt` and
    /// others. The first three are `none` by default, and the BOS and EOS tokens are set, as in `apply_chat_template`
    /// of the transformers library.
    pub fn render_with(&self, variables: &Variables) -> Result<String> {
        let mut all = Variables::new();
        for name in ["tools", "documents"] {
            all.insert(name.into(), Value::Null);
        }
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if !token.is_empty() {
                all.insert(name.into(), token.as_str().into());
            }
        }
        all.extend(variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        let text = self.program.render(&all, self.cancel.as_ref()).map_err(|failure| bad(&self.origin, failure))?;
        limits::check_prompt(&text, "the prompt rendered by the chat template")?;
        Ok(text)
    }

    /// Returns strings with which the model would start another turn, so that its reply is complete: the tags between a
    /// reply and the next message (`<|im_end|>`, `[INST]`), or otherwise the first line there (`### Human:`).
    pub fn stops(&self) -> Result<Vec<String>> {
        let messages =
            [Message::new(Role::User, "a"), Message::new(Role::Assistant, MARK), Message::new(Role::User, MARK)];
        let text = self.render(&messages, false)?;
        let between = text.split(MARK).nth(1).unwrap_or_default();
        let mut stops: Vec<String> = Vec::new();
        for (open, close) in [('<', '>'), ('[', ']')] {
            let tags = between.split_inclusive(close).filter_map(|part| part.rfind(open).map(|at| &part[at..]));
            let tags = tags.filter(|tag| {
                tag.ends_with(close) && tag.len() > 2 && ![&self.bos, &self.eos].contains(&&(**tag).into())
            });
            for tag in tags {
                // Too many are rejected later; looking for more could take unbounded time.
                if stops.len() <= limits::STOPS && !stops.iter().any(|s| s == tag) {
                    stops.push(tag.into());
                }
            }
        }
        if stops.is_empty() {
            let line = between.lines().map(str::trim).find(|line| !line.is_empty() && *line != self.eos);
            stops.extend(line.map(|line| format!("\n{line}")));
        }
        Ok(stops)
    }
}

/// Returns the error for a template that is invalid or fails.
fn bad(origin: &str, failure: Failure) -> Error {
    if failure.cancelled {
        return Error::Cancelled;
    }
    Error::Template { origin: origin.into(), line: failure.line, problem: failure.problem }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    /// A template like that of Hymba-Instruct.
    const HYMBA: &str = "{{ '<extra_id_0>System' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '\\n' + \
        m['content'].strip() }}{% endif %}{% endfor %}{{ '\\n\\n' }}{% for m in messages %}{% if m['role'] == 'user' %}\
        {{ '<extra_id_1>User\\n' + m['content'].strip() + '\\n' }}{% elif m['role'] == 'assistant' %}\
        {{ '<extra_id_1>Assistant\\n' + m['content'].strip() + '\\n' }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}";
    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const LLAMA: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]\
        {% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}";
    const ALPACA: &str = "{% for m in messages %}{% if m.role == 'user' %}### Human: {{ m.content }}\n{% else %}\
        ### Bot: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Bot:{% endif %}";

    fn template(source: &str) -> Template {
        Template::new(source, "test", "<s>", "</s>").unwrap()
    }

    fn user(content: &str) -> Message<'_> {
        Message::new(Role::User, content)
    }

    #[test]
    fn renders_as_jinja_does() {
        let messages = [Message::new(Role::System, " Be brief. "), user("Hello\n")];
        assert_eq!(
            template(HYMBA).render(&messages, true).unwrap(),
            "<extra_id_0>System\nBe brief.\n\n<extra_id_1>User\nHello\n<extra_id_1>Assistant\n"
        );
        assert_eq!(template(CHATML).render(&[user("a")], false).unwrap(), "<|im_start|>user\na<|im_end|>\n");
        assert_eq!(template(LLAMA).render(&[user("a")], true).unwrap(), "<s>[INST] a [/INST]");
        // Markup is not escaped, and line breaks after blocks are removed.
        assert_eq!(
            template("{% if true %}\n  {% endif %}{{ messages[0].content }}").render(&[user("<&'\">")], true).unwrap(),
            "<&'\">"
        );
    }

    #[test]
    fn tool_and_context_support_is_detected() {
        let tools = Tools::parse(r#"[{"name": "f", "parameters": {"type": "object"}}]"#, "t.json").unwrap();
        let contexts = ["a".to_owned()];
        let inputs = Inputs { tools: Some(&tools), contexts: &contexts, ..Inputs::default() };
        let rendered = template("{{ tools|tojson }} {{ contexts|tojson }} {{ documents|tojson }}").render(inputs, true);
        let expected = r#"[{"name": "f", "parameters": {"type": "object"}}] ["a"] [{"title": "", "text": "a"}]"#;
        assert_eq!(rendered.unwrap(), expected);
        let takes = |source| (template(source).takes_tools().unwrap(), template(source).takes_contexts().unwrap());
        assert_eq!(takes(CHATML), (false, false));
        assert_eq!(takes("{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"), (true, false));
        assert_eq!(takes("{% for c in contexts %}{{ c.strip() }}{% endfor %}"), (false, true));
        assert_eq!(takes("{% for d in documents or [] %}{{ d.text }}{% endfor %}"), (false, true));
        let result = [Message::new(Role::Tool, "5")];
        assert_eq!(
            template("{{ messages[0].role }} {{ messages[0].content }}").render(&result, true).unwrap(),
            "tool 5"
        );
    }

    #[test]
    fn stop_strings_are_derived_from_the_template() {
        let stops = |source: &str| template(source).stops().unwrap();
        assert_eq!(stops(HYMBA), ["<extra_id_1>"]);
        assert_eq!(stops(CHATML), ["<|im_end|>", "<|im_start|>"]);
        assert_eq!(stops(LLAMA), ["[INST]"]);
        assert_eq!(stops(ALPACA), ["\n### Human:"]);
    }

    #[test]
    fn template_errors_are_described() {
        let refusal = |source: &str| match Template::new(source, "t.jinja", "", "") {
            Ok(t) => t.render(&[user("a")], true).unwrap_err().to_string(),
            Err(e) => e.to_string(),
        };
        assert!(refusal("a\n{% for %}").starts_with("t.jinja: is not a usable chat template, line 2: "));
        assert!(refusal("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
        assert!(refusal("{{ messages[0].content.no_such() }}").contains("no_such"));
    }

    #[test]
    fn rendering_ends_when_it_is_cancelled() {
        let cancel = Arc::new(AtomicBool::new(false));
        let long = "{% for i in range(100000) %}{% endfor %}{{ messages[0].content }}";
        let template = template(long).cancelled_by(&cancel);
        assert_eq!(template.render(&[user("a")], true).unwrap(), "a");
        cancel.store(true, Ordering::Relaxed);
        assert!(matches!(template.render(&[user("a")], true), Err(Error::Cancelled)));
        assert!(matches!(template.stops(), Err(Error::Cancelled)));
        let markers = crate::text::small_tokenizer().markers(&[]).unwrap();
        assert!(matches!(template.render_literal(&[user("<")], true, &markers), Err(Error::Cancelled)));
    }

    #[test]
    fn template_cost_is_limited() {
        let refusal = |source: &str| match Template::new(source, "t.jinja", "", "") {
            Ok(t) => t.render(&[user("a")], true).unwrap_err().to_string(),
            Err(e) => e.to_string(),
        };
        let doubling =
            "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
        for endless in [
            "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
            doubling,
            "{{ 'a' * 99999999 }}",
            "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
        ] {
            let message = refusal(endless);
            assert!(message.contains("more than 2000000 steps"), "{endless}: {message}");
        }
        let deep = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
        assert!(refusal(deep).contains("calls are nested more than 64 deep"), "{}", refusal(deep));
        let long = refusal("{% set s = 'a' * 999999 %}{% for i in range(17) %}{{ s }}{% endfor %}");
        assert!(long.contains("rendered by the chat template has 16999983 bytes; the limit is 16 MB"), "{long}");
        let source = refusal(&"a".repeat(limits::TEMPLATE + 1));
        assert_eq!(source, "t.jinja: has a chat template of 1000001 bytes; the limit is 1 MB; use a shorter one");
        let tags = template(
            "{{ messages[1].content }}{% for i in range(999) %}<{{ i }}>{% endfor %}{{ messages[2].content }}",
        );
        assert_eq!(tags.stops().unwrap().len(), limits::STOPS + 1);
    }
}
