//! A conversation: turns of a person and the model on a [`Timeline`], with a past that can be taken back, tried again,
//! branched, shortened and saved.

mod prompt;
mod saved;

use std::{collections::BTreeMap, io, time::Instant};

use super::{
    Timeline,
    generate::{Generation, Request, Steps, StopReason, Timings, generate},
    timeline::{Step, Watch, prefilled},
};
use crate::{
    Error, Result,
    sample::Sampler,
    text::{StopMatcher, Template, Tokenizer},
};
pub use saved::Saved;

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The reply ends there.
    Stop,
    /// The oldest turns are dropped, the system message is kept, and what is left is read again.
    Slide,
}

/// A message and its reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// What the person said.
    pub user: String,
    /// What the model said.
    pub reply: String,
    /// How many of the steps make the prompt; the reply's follow.
    prompt: usize,
    /// Everything read from the beginning of the conversation to the end of the reply. They may lack the reply's last
    /// token, or have a part of a stop string.
    steps: Vec<Step>,
}

/// A way the conversation took.
#[derive(Clone, Debug, Default, PartialEq)]
struct Branch {
    system: Option<String>,
    turns: Vec<Turn>,
}

/// Who hears a reply.
pub struct Listener<'a> {
    /// Ends it; hears of reading that takes time.
    pub watch: Watch<'a>,
    /// Gets the text as it comes, see [`generate`].
    pub text: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

/// A reply.
pub struct Reply {
    /// Its text, why it ended, how long it took.
    pub generation: Generation,
    /// Turns that were dropped to make room.
    pub dropped: usize,
}

/// What a conversation is set up with.
pub struct Options {
    /// Makes prompts of messages; `None`: the messages and replies are one running text.
    pub template: Option<Template>,
    /// What the model should be.
    pub system: Option<String>,
    /// Tokens of a reply at most.
    pub limit: Option<usize>,
    /// Strings that end a reply, beside those of the template.
    pub stops: Vec<String>,
    /// What happens when the context is full.
    pub overflow: Overflow,
}

/// A conversation.
pub struct Conversation<'m> {
    timeline: Timeline<'m>,
    tokenizer: &'m Tokenizer,
    sampler: Sampler,
    options: Options,
    /// Those of the template.
    stops: Vec<String>,
    name: String,
    here: Branch,
    others: BTreeMap<String, Branch>,
}

/// The branch that a conversation begins with.
pub const FIRST_BRANCH: &str = "main";

impl<'m> Conversation<'m> {
    /// An empty conversation on an empty timeline.
    pub fn new(
        timeline: Timeline<'m>,
        tokenizer: &'m Tokenizer,
        sampler: Sampler,
        mut options: Options,
    ) -> Result<Self> {
        let here = Branch { system: options.system.take(), turns: Vec::new() };
        let mut conversation = Self {
            timeline,
            tokenizer,
            sampler,
            stops: Vec::new(),
            options,
            name: FIRST_BRANCH.into(),
            here,
            others: BTreeMap::new(),
        };
        conversation.find_stops()?;
        Ok(conversation)
    }

    fn find_stops(&mut self) -> Result<()> {
        self.stops = self.options.template.as_ref().map(Template::stops).transpose()?.unwrap_or_default();
        self.stops.extend_from_slice(&self.options.stops);
        StopMatcher::new(&self.stops).map(drop)
    }

    /// The turns so far.
    pub fn turns(&self) -> &[Turn] {
        &self.here.turns
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.here.system.as_deref()
    }

    /// The branch's name.
    pub fn branch_name(&self) -> &str {
        &self.name
    }

    /// The names of all branches, the present one included.
    pub fn branches(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.others.keys().map(String::as_str).chain([&*self.name]).collect();
        names.sort_unstable();
        names
    }

    /// What it was set up with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Strings that end a reply.
    pub fn stops(&self) -> &[String] {
        &self.stops
    }

    /// Replies get `limit` tokens at most from now on.
    pub fn set_limit(&mut self, limit: Option<usize>) {
        self.options.limit = limit;
    }

    /// The sampler.
    pub fn sampler(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// The timeline.
    pub fn timeline(&mut self) -> &mut Timeline<'m> {
        &mut self.timeline
    }

    /// Tokens of the context that are used.
    pub fn used(&self) -> usize {
        self.here.turns.last().map_or(0, |turn| turn.steps.len())
    }

    /// Says `message` and hears the reply. A message that got no reply, being cancelled before, leaves nothing behind.
    pub fn say(&mut self, message: &str, listener: &mut Listener<'_>) -> Result<Reply> {
        let mut prompt = self.prompt_after(&self.here, message)?;
        let mut dropped = 0;
        if prompt.len() >= self.timeline.context() {
            let (kept, shorter) = self.slid(Some(message)).unwrap_or_default();
            if shorter.is_empty() {
                return Err(self.full(prompt.len()));
            }
            dropped = self.here.turns.len() - kept.len();
            (self.here.turns, prompt) = (kept, shorter);
        }
        self.reply(message, prompt, dropped, listener)
    }

    /// Hears another reply to the last message, in place of the one there is.
    pub fn regenerate(&mut self, listener: &mut Listener<'_>) -> Result<Reply> {
        let turn = self.here.turns.pop().ok_or(Error::NothingSaid)?;
        let done = self.reply(&turn.user, turn.steps[..turn.prompt].to_vec(), 0, listener);
        if done.is_err() {
            self.here.turns.push(turn);
        }
        done
    }

    fn reply(
        &mut self,
        message: &str,
        mut prompt: Vec<Step>,
        mut dropped: usize,
        listener: &mut Listener<'_>,
    ) -> Result<Reply> {
        let cancel = listener.watch.cancel;
        let start = Instant::now();
        let before = self.timeline.evaluated();
        self.timeline.go(&prompt, &listener.watch)?;
        self.timeline.mark()?;
        let reading = Timings {
            prompt_tokens: self.timeline.evaluated() - before,
            prompt: start.elapsed(),
            ..Timings::default()
        };

        let mut all = Generation { text: String::new(), ids: Vec::new(), stop: StopReason::Limit, timings: reading };
        loop {
            let history = self.timeline.ids();
            let limit = self.options.limit.map(|limit| limit - all.ids.len());
            let request = Request { history: &history, prompt: &[], limit, stops: &self.stops };
            let done =
                generate(&mut self.timeline, self.tokenizer, &mut self.sampler, &request, cancel, listener.text)?;
            let unread = done.ids.get(done.timings.decode_steps).copied();
            all.text += &done.text;
            all.ids.extend(&done.ids);
            all.stop = done.stop;
            all.timings.generated_tokens += done.timings.generated_tokens;
            all.timings.decode_steps += done.timings.decode_steps;
            all.timings.generation += done.timings.generation;

            let mut steps = self.timeline.steps().to_vec();
            match (done.stop, unread) {
                (StopReason::StopString | StopReason::BrokenPipe, _) | (_, None) => {}
                (StopReason::ContextFull, Some(id)) if self.options.overflow == Overflow::Slide => {
                    steps.extend(prefilled(&[id]));
                }
                (_, Some(_)) if steps.len() >= self.timeline.context() => {}
                (_, Some(id)) => {
                    self.timeline.decode(id)?;
                    steps = self.timeline.steps().to_vec();
                }
            }
            let turn = Turn { user: message.into(), reply: all.text.clone(), prompt: prompt.len(), steps };
            if all.ids.is_empty() && done.stop == StopReason::Interrupted {
                return Err(Error::Cancelled);
            }
            self.here.turns.push(turn);
            if done.stop != StopReason::ContextFull {
                break;
            }
            let turns = self.here.turns.len();
            let Some((kept, _)) = self.slid(None).filter(|(kept, _)| kept.len() < turns) else { break };
            dropped += turns - kept.len();
            self.here.turns = kept;
            let Some(turn) = self.here.turns.pop() else { break };
            let gone = self.timeline.go(&turn.steps, &listener.watch);
            prompt = turn.steps[..turn.prompt].to_vec();
            match gone {
                Err(Error::Cancelled) => {
                    self.here.turns.push(turn);
                    all.stop = StopReason::Interrupted;
                    break;
                }
                gone => gone?,
            }
        }
        self.timeline.mark()?;
        Ok(Reply { generation: all, dropped })
    }

    /// The last turns that leave half of the context free, and the prompt that `message` makes after them; at least
    /// without the oldest turn. `None` if turns are not to be dropped, or there is no room even so.
    fn slid(&self, message: Option<&str>) -> Option<(Vec<Turn>, Vec<Step>)> {
        if self.options.overflow == Overflow::Stop {
            return None;
        }
        let context = self.timeline.context();
        let turns = &self.here.turns;
        let last = if message.is_some() { turns.len() } else { turns.len().saturating_sub(1) };
        for first in 1..=last {
            let mut kept = Branch { system: self.here.system.clone(), turns: Vec::new() };
            kept.turns = self.read_anew(&kept.system, &turns[first..]).ok()?;
            let prompt = match message {
                Some(message) => self.prompt_after(&kept, message).ok()?,
                None => Vec::new(),
            };
            let length = prompt.len().max(kept.turns.last().map_or(0, |turn| turn.steps.len()));
            if length <= context / 2 || first == last && length < context {
                return Some((kept.turns, prompt));
            }
        }
        None
    }

    fn full(&self, needed: usize) -> Error {
        let context = self.timeline.context();
        let free = context - self.used().min(context);
        Error::ConversationFull { needed, free, context }
    }

    /// Takes back the last `count` turns and returns them, the first first.
    pub fn undo(&mut self, count: usize, watch: &Watch<'_>) -> Result<Vec<Turn>> {
        let turns = self.here.turns.len();
        if count == 0 || count > turns {
            let what = format!("there are {turns} turns to take back; name a number from 1 to {turns}");
            return Err(if turns == 0 { Error::NothingSaid } else { Error::Request(what) });
        }
        let gone = self.here.turns.split_off(turns - count);
        self.settle(watch)?;
        Ok(gone)
    }

    /// Brings the timeline to where the conversation is.
    fn settle(&mut self, watch: &Watch<'_>) -> Result<()> {
        self.timeline.go(self.here.turns.last().map_or(&[], |turn| &turn.steps), watch)
    }

    /// Forgets all turns of this branch.
    pub fn clear(&mut self) -> Result<()> {
        self.here.turns.clear();
        self.timeline.clear()
    }

    /// Sets the system message; what was said is read again after it.
    pub fn set_system(&mut self, system: Option<&str>, watch: &Watch<'_>) -> Result<()> {
        let system = system.map(str::to_owned);
        let turns = self.read_anew(&system, &self.here.turns)?;
        if let Some(last) = turns.last().filter(|last| last.steps.len() > self.timeline.context()) {
            return Err(self.full(last.steps.len()));
        }
        self.here = Branch { system, turns };
        self.settle(watch)
    }

    /// `turns` as they are read after nothing but `system`.
    fn read_anew(&self, system: &Option<String>, turns: &[Turn]) -> Result<Vec<Turn>> {
        let mut anew = Branch { system: system.clone(), turns: Vec::new() };
        for turn in turns {
            let mut steps = self.prompt_after(&anew, &turn.user)?;
            let prompt = steps.len();
            let reply: Vec<u32> = turn.steps[turn.prompt..].iter().map(|step| step.id).collect();
            steps.extend(prefilled(&reply));
            anew.turns.push(Turn { prompt, steps, ..turn.clone() });
        }
        Ok(anew.turns)
    }

    /// Goes on as a new branch, `name`; the present one stays where it is.
    pub fn branch(&mut self, name: &str) -> Result<()> {
        if name == self.name || self.others.contains_key(name) {
            return Err(Error::BranchExists(name.into()));
        }
        self.put_aside()?;
        self.name = name.into();
        Ok(())
    }

    /// Goes to the end of another branch.
    pub fn switch(&mut self, name: &str, watch: &Watch<'_>) -> Result<()> {
        if name == self.name {
            return Err(Error::Request(format!("this is the branch `{name}`")));
        }
        if !self.others.contains_key(name) {
            let known = self.branches().into_iter().map(Into::into).collect();
            return Err(Error::UnknownBranch { name: name.into(), known });
        }
        self.put_aside()?;
        self.here = self.others.remove(name).unwrap_or_default();
        self.name = name.into();
        self.timeline.unshelve(name);
        self.settle(watch)
    }

    /// Keeps a copy of the present branch.
    fn put_aside(&mut self) -> Result<()> {
        self.timeline.shelve(&self.name)?;
        self.others.insert(self.name.clone(), self.here.clone());
        Ok(())
    }
}
