//! A conversation's state: its timeline, its branches, and what it was set up with.

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

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The reply ends there.
    #[default]
    Stop,
    /// The oldest turns are dropped, the system message is kept, and what is left is read again.
    Slide,
}

/// What a conversation is set up with.
#[derive(Default)]
pub struct Options {
    /// Makes prompts of messages; `None`: the messages and replies are one running text.
    pub template: Option<Template>,
    /// What the model should be.
    pub system: Option<String>,
    /// Tokens of a reply at most.
    pub limit: Option<usize>,
    /// Strings that end a reply, beside those of the template.
    pub stops: Vec<String>,
    /// Whether markers of the template and special tokens that messages name become these; otherwise they are text there.
    pub parse_special: bool,
    /// What happens when the context is full.
    pub overflow: Overflow,
    /// What each reply has to match.
    pub constraint: Option<Arc<Constraint>>,
    /// What the model may call.
    pub tools: Option<Tools>,
    /// Whether it does. A choice that asks for a call is about replies to messages, not about those to results.
    pub tool_choice: ToolChoice,
    /// Texts to answer from.
    pub contexts: Vec<String>,
}

/// A conversation.
pub struct Conversation<'m> {
    pub(super) timeline: Timeline<'m>,
    pub(super) tokenizer: &'m Tokenizer,
    pub(super) sampler: Sampler,
    /// Knows what all branches have said.
    pub(super) speculator: Speculator,
    pub(super) options: Options,
    /// What follows from the template.
    pub(super) format: Format,
    /// Those of the options, or where these have none, of the file that the conversation is from.
    pub(super) tools: Option<Tools>,
    pub(super) contexts: Vec<String>,
    /// What follows from the tools.
    pub(super) held_to: CallConstraints,
    /// Of the current branch.
    pub(super) name: String,
    pub(super) current: Branch,
    /// The other branches.
    pub(super) branches: BTreeMap<String, Branch>,
}

/// The branch that a conversation begins with.
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
        check_places(options.template.as_ref(), tools.as_ref(), &contexts)?;
        let go_on = AtomicBool::new(false);
        let held_to = CallConstraints::new(tokenizer, &format.stops, tools.as_ref(), &options.tool_choice, &go_on)?;
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
            held_to,
            name,
            current,
            branches,
        })
    }

    /// Returns the turns so far.
    pub fn turns(&self) -> &[Turn] {
        &self.current.turns
    }

    /// Whether nothing was said, in no branch.
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

    /// Returns the names of all branches, the current one included.
    pub fn branches(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.branches.keys().map(String::as_str).chain([&*self.name]).collect();
        names.sort_unstable();
        names
    }

    /// Returns what it was set up with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the strings that end a reply.
    pub fn stops(&self) -> &[String] {
        &self.format.stops
    }

    /// Returns what the model may call, unless it is not to call anything.
    pub fn tools(&self) -> Option<&Tools> {
        self.tools.as_ref().filter(|_| self.options.tool_choice != ToolChoice::None)
    }

    /// Returns the texts to answer from.
    pub fn contexts(&self) -> &[String] {
        &self.contexts
    }

    /// Lets replies have `limit` tokens at most from now on.
    pub fn set_limit(&mut self, limit: Option<usize>) {
        self.options.limit = limit;
    }

    /// Sets what happens when the context is full.
    pub fn set_overflow(&mut self, overflow: Overflow) {
        self.options.overflow = overflow;
    }

    /// Sets what each reply has to match from now on.
    pub fn set_constraint(&mut self, constraint: Option<Arc<Constraint>>) {
        self.options.constraint = constraint;
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &'m Tokenizer {
        self.tokenizer
    }

    /// Lets `speculator` guess the tokens of replies from now on.
    pub fn set_speculator(&mut self, speculator: Speculator) {
        self.speculator = speculator;
    }

    /// Goes on with `timeline`, which has read what this conversation's has, and may have room for more.
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

    /// Returns how many tokens of the context are used.
    pub fn used(&self) -> usize {
        self.current.end()
    }

    /// Returns the error that `needed` tokens do not fit.
    pub(super) fn full(&self, needed: usize) -> Error {
        let context = self.timeline.context();
        let free = context - self.used().min(context);
        Error::ConversationFull { needed, free, context }
    }
}

/// Fails if `template` has no place for what is to stand in it.
pub(super) fn check_places(template: Option<&Template>, tools: Option<&Tools>, contexts: &[String]) -> Result<()> {
    let missing = |what: &str| Error::Request(format!("the chat template has no place for {what}"));
    if tools.is_some() && !template.map(Template::takes_tools).transpose()?.unwrap_or(false) {
        return Err(missing("tools"));
    }
    if !contexts.is_empty() && !template.map(Template::takes_contexts).transpose()?.unwrap_or(false) {
        return Err(missing("texts to answer from"));
    }
    Ok(())
}
