//! The state of a conversation: its timeline, branches and options.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};

use super::{Branch, Turn, calls::CallConstraints, format::Format};
use crate::{
    Error, Result,
    constrain::Constraint,
    engine::{
        Timeline,
        speculate::{Speculate, Speculator},
    },
    sample::Sampler,
    text::{Template, Tokenizer, ToolChoice, Tools},
};

/// The policy for a full context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The reply ends.
    #[default]
    Stop,
    /// The oldest turns are dropped, except for the system message, and the rest is reprocessed.
    Slide,
}

/// The options of a conversation.
#[derive(Default)]
pub struct Options {
    /// The chat template; `None`: messages and replies form one plain text.
    pub template: Option<Template>,
    /// The system message.
    pub system: Option<String>,
    /// Maximum number of tokens of a reply.
    pub limit: Option<usize>,
    /// Additional stop strings.
    pub stops: Vec<String>,
    /// Whether template markers and special tokens in messages are parsed as such; otherwise they are plain text.
    pub parse_special: bool,
    /// The policy for a full context.
    pub overflow: Overflow,
    /// The constraint on every reply.
    pub constraint: Option<Arc<Constraint>>,
    /// The tools that the model may call.
    pub tools: Option<Tools>,
    /// Whether the model may or must call a tool. A required call applies to replies to messages, not to replies to
    /// results.
    pub tool_choice: ToolChoice,
    /// Texts to answer from, passed to the template.
    pub contexts: Vec<String>,
}

/// A conversation.
pub struct Conversation<'m> {
    pub(super) timeline: Timeline<'m>,
    pub(super) tokenizer: &'m Tokenizer,
    pub(super) sampler: Sampler,
    /// Drafts tokens from the text of all branches.
    pub(super) speculator: Speculator,
    pub(super) options: Options,
    /// Properties of the template.
    pub(super) format: Format,
    /// The tools of the options, or else of the loaded session file.
    pub(super) tools: Option<Tools>,
    pub(super) contexts: Vec<String>,
    /// The constraints imposed by the tools.
    pub(super) call_constraints: CallConstraints,
    /// The name of the current branch.
    pub(super) name: String,
    pub(super) current: Branch,
    /// The other branches.
    pub(super) branches: BTreeMap<String, Branch>,
}

/// The name of the first branch.
pub const FIRST_BRANCH: &str = "main";

impl<'m> Conversation<'m> {
    /// Returns an empty conversation on an empty timeline.
    pub fn new(
        timeline: Timeline<'m>,
        tokenizer: &'m Tokenizer,
        sampler: Sampler,
        mut options: Options,
    ) -> Result<Self> {
        let current = Branch { system: options.system.take(), turns: Vec::new() };
        let format = Format::new(tokenizer, options.template.as_ref(), &options.stops)?;
        let (tools, contexts) = (options.tools.clone(), options.contexts.clone());
        check_template_inputs(options.template.as_ref(), tools.as_ref(), &contexts)?;
        let no_cancel = AtomicBool::new(false);
        let call_constraints =
            CallConstraints::new(tokenizer, &format.stops, tools.as_ref(), &options.tool_choice, &no_cancel)?;
        let (name, branches) = (FIRST_BRANCH.into(), BTreeMap::new());
        let speculator = Speculator::new(Speculate::Auto);
        Ok(Self {
            timeline,
            tokenizer,
            sampler,
            speculator,
            options,
            format,
            tools,
            contexts,
            call_constraints,
            name,
            current,
            branches,
        })
    }

    /// Returns the turns of the current branch.
    pub fn turns(&self) -> &[Turn] {
        &self.current.turns
    }

    /// Whether all branches are empty.
    pub fn is_empty(&self) -> bool {
        self.current.turns.is_empty() && self.branches.values().all(|branch| branch.turns.is_empty())
    }

    /// Returns the system message.
    pub fn system(&self) -> Option<&str> {
        self.current.system.as_deref()
    }

    /// Returns the name of the current branch.
    pub fn branch_name(&self) -> &str {
        &self.name
    }

    /// Returns the names of all branches, including the current one.
    pub fn branches(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.branches.keys().map(String::as_str).chain([&*self.name]).collect();
        names.sort_unstable();
        names
    }

    /// Returns the options of the conversation.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the strings that end a reply.
    pub fn stops(&self) -> &[String] {
        &self.format.stops
    }

    /// Returns the tools that the model may call, unless the tool choice disables them.
    pub fn tools(&self) -> Option<&Tools> {
        self.tools.as_ref().filter(|_| self.options.tool_choice != ToolChoice::None)
    }

    /// Returns the texts to answer from.
    pub fn contexts(&self) -> &[String] {
        &self.contexts
    }

    /// Sets the maximum number of tokens of a reply.
    pub fn set_limit(&mut self, limit: Option<usize>) {
        self.options.limit = limit;
    }

    /// Sets the policy for a full context.
    pub fn set_overflow(&mut self, overflow: Overflow) {
        self.options.overflow = overflow;
    }

    /// Sets the constraint on replies.
    pub fn set_constraint(&mut self, constraint: Option<Arc<Constraint>>) {
        self.options.constraint = constraint;
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &'m Tokenizer {
        self.tokenizer
    }

    /// Sets the speculator that drafts tokens of replies.
    pub fn set_speculator(&mut self, speculator: Speculator) {
        self.speculator = speculator;
    }

    /// Replaces the timeline by one that has processed the same steps and may have a larger context.
    pub fn set_timeline(&mut self, timeline: Timeline<'m>) {
        self.timeline = timeline;
    }

    /// Returns the sampler.
    pub fn sampler(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// Returns the timeline.
    pub fn timeline(&mut self) -> &mut Timeline<'m> {
        &mut self.timeline
    }

    /// Returns the number of context tokens in use.
    pub fn used(&self) -> usize {
        self.current.end()
    }

    /// Returns the error for `needed` tokens that do not fit.
    pub(super) fn context_full_error(&self, needed: usize) -> Error {
        let context = self.timeline.context();
        let free = context - self.used().min(context);
        Error::ConversationFull { needed, free, context }
    }
}

/// Fails if `template` has no place for the tools or contexts.
pub(super) fn check_template_inputs(
    template: Option<&Template>,
    tools: Option<&Tools>,
    contexts: &[String],
) -> Result<()> {
    let missing = |feature: &str| Error::Request(format!("the chat template does not support {feature}"));
    if tools.is_some() && !template.map(Template::takes_tools).transpose()?.unwrap_or(false) {
        return Err(missing("tools"));
    }
    if !contexts.is_empty() && !template.map(Template::takes_contexts).transpose()?.unwrap_or(false) {
        return Err(missing("context texts"));
    }
    Ok(())
}
