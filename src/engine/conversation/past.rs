//! What can be done about the past: take turns back, change the system message, branch, make room.

use super::{Branch, Conversation, Overflow, Turn};
use crate::{
    Error, Result,
    engine::timeline::{Step, Watch, prefilled},
};

impl Conversation<'_> {
    /// Takes back the last `count` turns and returns them, the first first.
    pub fn undo(&mut self, count: usize, watch: &Watch<'_>) -> Result<Vec<Turn>> {
        let turns = self.current.turns.len();
        if count == 0 || count > turns {
            let what = format!("there are {turns} turns to take back; name a number from 1 to {turns}");
            return Err(if turns == 0 { Error::NothingSaid } else { Error::Request(what) });
        }
        let gone = self.current.turns.split_off(turns - count);
        self.sync(watch)?;
        Ok(gone)
    }

    /// Brings the timeline to where the conversation is.
    pub(super) fn sync(&mut self, watch: &Watch<'_>) -> Result<()> {
        self.timeline.seek(&self.current.steps(), watch)
    }

    /// Forgets all turns of this branch.
    pub fn clear(&mut self) -> Result<()> {
        self.current.turns.clear();
        self.timeline.clear()
    }

    /// Sets the system message; what was said is read again after it.
    pub fn set_system(&mut self, system: Option<&str>, watch: &Watch<'_>) -> Result<()> {
        let replayed = self.replay_turns(system.map(str::to_owned), 0)?;
        if replayed.end() > self.timeline.context() {
            return Err(self.full(replayed.end()));
        }
        self.current = replayed;
        self.sync(watch)
    }

    /// Returns the current branch without its first `dropped` turns, as it is read after nothing but `system`.
    fn replay_turns(&self, system: Option<String>, dropped: usize) -> Result<Branch> {
        let mut replayed = Branch { system, turns: Vec::new() };
        for (i, turn) in self.current.turns.iter().enumerate().skip(dropped) {
            let mut steps = self.prompt_after(&replayed, &turn.user)?;
            let prompt = steps.len();
            let reply: Vec<u32> = self.current.steps_of(i + 1)[turn.prompt..].iter().map(|step| step.id).collect();
            steps.extend(prefilled(&reply));
            replayed.push(&turn.user, &turn.reply, prompt, steps);
        }
        Ok(replayed)
    }

    /// Returns a branch of the last turns that leave half of the context free, and the prompt that `message` makes after
    /// them; at least without the oldest turn. `None` if turns are not to be dropped, or there is no room even so.
    pub(super) fn slide_window(&self, message: Option<&str>) -> Option<(Branch, Vec<Step>)> {
        if self.options.overflow == Overflow::Stop {
            return None;
        }
        let context = self.timeline.context();
        let turns = self.current.turns.len();
        let last = if message.is_some() { turns } else { turns.saturating_sub(1) };
        for dropped in 1..=last {
            let kept = self.replay_turns(self.current.system.clone(), dropped).ok()?;
            let prompt = message.map(|message| self.prompt_after(&kept, message)).transpose().ok()?.unwrap_or_default();
            let length = prompt.len().max(kept.end());
            if length <= context / 2 || dropped == last && length < context {
                return Some((kept, prompt));
            }
        }
        None
    }

    /// Goes on as a new branch, `name`; the current one stays where it is.
    pub fn branch(&mut self, name: &str) -> Result<()> {
        if name == self.name || self.branches.contains_key(name) {
            return Err(Error::BranchExists(name.into()));
        }
        self.stash_branch()?;
        self.name = name.into();
        Ok(())
    }

    /// Goes to the end of another branch.
    pub fn switch(&mut self, name: &str, watch: &Watch<'_>) -> Result<()> {
        if name == self.name {
            return Err(Error::Request(format!("this is the branch `{name}`")));
        }
        if !self.branches.contains_key(name) {
            let known = self.branches().into_iter().map(Into::into).collect();
            return Err(Error::UnknownBranch { name: name.into(), known });
        }
        self.stash_branch()?;
        self.current = self.branches.remove(name).unwrap_or_default();
        self.name = name.into();
        self.timeline.unstash(name);
        self.sync(watch)
    }

    /// Keeps a copy of the current branch.
    fn stash_branch(&mut self) -> Result<()> {
        self.timeline.stash(&self.name)?;
        self.branches.insert(self.name.clone(), self.current.clone());
        Ok(())
    }
}
