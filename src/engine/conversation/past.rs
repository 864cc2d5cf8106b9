//! Operations on the history of a conversation: undo, change of the system message, branches, sliding window.

use super::{Branch, Conversation, Overflow, Turn, branch::Query, prompt::Prompt};
use crate::{
    Error, Result,
    engine::timeline::{Step, Watch, prefilled},
};

impl Conversation<'_> {
    /// Undoes the last `count` exchanges and returns their turns, oldest first. Tool calls and their results belong to
    /// the exchange of the message that led to them.
    pub fn undo(&mut self, count: usize, watch: &Watch<'_>) -> Result<Vec<Turn>> {
        let Some(start) = self.current.last_exchanges(count) else {
            let turns = self.current.exchanges();
            let problem = format!("only {turns} turns to undo; give a number from 1 to {turns}");
            return Err(if turns == 0 { Error::NoTurns } else { Error::Request(problem) });
        };
        let undone = self.current.turns.split_off(start);
        self.sync(watch)?;
        Ok(undone)
    }

    /// Moves the timeline to the end of the current branch.
    pub(super) fn sync(&mut self, watch: &Watch<'_>) -> Result<()> {
        self.timeline.seek(&self.current.steps(), watch)
    }

    /// Removes all turns of the current branch.
    pub fn clear(&mut self) -> Result<()> {
        self.current.turns.clear();
        self.speculator.clear();
        self.timeline.clear()
    }

    /// Sets the system message and replays the turns after it.
    pub fn set_system(&mut self, system: Option<&str>, watch: &Watch<'_>) -> Result<()> {
        let min = system.map_or(0, |system| self.tokenizer.least_tokens(system));
        if min > self.timeline.context() {
            return Err(self.context_full_error(min));
        }
        let replayed = self.replay_turns(system.map(str::to_owned), 0, watch)?;
        if replayed.end() > self.timeline.context() {
            return Err(self.context_full_error(replayed.end()));
        }
        self.current = replayed;
        self.sync(watch)
    }

    /// Returns the current branch without its first `dropped` turns, re-encoded after `system`; it ends at the first
    /// turn that exceeds the context, if there is one.
    fn replay_turns(&self, system: Option<String>, dropped: usize, watch: &Watch<'_>) -> Result<Branch> {
        let mut replayed = Branch { system, turns: Vec::new() };
        let mut read: Vec<Step> = self.current.steps_of(dropped);
        for turn in &self.current.turns[dropped..] {
            Error::check_cancelled(watch.cancel)?;
            read.truncate(turn.kept);
            read.extend(&turn.steps);
            let Prompt { mut steps, fingerprint, .. } = self.prompt_after(&replayed, turn.query())?;
            let prompt = steps.len();
            let reply: Vec<u32> = read[turn.prompt..].iter().map(|step| step.id).collect();
            steps.extend(prefilled(&reply));
            replayed.push(turn.query(), &turn.reply, prompt, fingerprint, steps);
            if replayed.end() > self.timeline.context() {
                break;
            }
        }
        Ok(replayed)
    }

    /// Drops the oldest turns, at least one, so that half of the context is free. Returns the remaining branch and the
    /// prompt for `query` after it. The branch starts with a user message, and tool results stay with their calls.
    /// Returns `None` if dropping is disabled or does not make enough room.
    pub(super) fn slide_window(
        &self,
        query: Option<Query<'_>>,
        watch: &Watch<'_>,
    ) -> Result<Option<(Branch, Option<Prompt>)>> {
        if self.options.overflow == Overflow::Stop {
            return Ok(None);
        }
        let context = self.timeline.context();
        let last = match query {
            Some(Query::User(_)) => self.current.turns.len(),
            Some(Query::Results(_)) | None => self.current.last_exchanges(1).unwrap_or(0),
        };
        // The branch without its first `dropped` turns, if it is short enough.
        let without = |dropped: usize| -> Result<Option<(Branch, Option<Prompt>)>> {
            let dropped = self.current.exchange_from(dropped);
            let kept = self.replay_turns(self.current.system.clone(), dropped, watch)?;
            if kept.end() > context {
                return Ok(None);
            }
            let prompt = query.map(|query| self.prompt_after(&kept, query)).transpose()?;
            let length = prompt.as_ref().map_or(0, |prompt| prompt.steps.len()).max(kept.end());
            Ok((length <= context / 2 || dropped == last && length < context).then_some((kept, prompt)))
        };
        fewest(1, last, self.estimate_drop(last), without).or_else(|e| match e {
            Error::Cancelled => Err(e),
            _ => Ok(None),
        })
    }

    /// Estimates how many turns to drop, at most `last`, to free half of the context, from the lengths of the turns
    /// when they were processed.
    fn estimate_drop(&self, last: usize) -> usize {
        let end = self.used();
        let left = |turn: &Turn| end.saturating_sub(turn.end());
        1 + self.current.turns[..last.saturating_sub(1)]
            .partition_point(|turn| left(turn) > self.timeline.context() / 2)
    }

    /// Creates a branch `name` at the end of the current one and switches to it.
    pub fn branch(&mut self, name: &str) -> Result<()> {
        if name == self.name || self.branches.contains_key(name) {
            return Err(Error::BranchExists(name.into()));
        }
        self.stash_branch()?;
        self.name = name.into();
        Ok(())
    }

    /// Switches to the end of another branch.
    pub fn switch(&mut self, name: &str, watch: &Watch<'_>) -> Result<()> {
        if name == self.name {
            return Err(Error::Request(format!("already on branch `{name}`")));
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

    /// Stores a copy of the current branch.
    fn stash_branch(&mut self) -> Result<()> {
        self.timeline.stash(&self.name)?;
        self.branches.insert(self.name.clone(), self.current.clone());
        Ok(())
    }
}

/// Finds the smallest number from `first` to `last` for which `make` returns a value, and returns that value. `make`
/// must succeed for all larger numbers too. Starts at `guess` and needs few calls if the answer is near it.
fn fewest<T>(
    first: usize,
    last: usize,
    guess: usize,
    mut make: impl FnMut(usize) -> Result<Option<T>>,
) -> Result<Option<T>> {
    // Numbers below `low` fail; `found` is the value of `high`.
    let (mut low, mut high, mut found) = (first, last + 1, None);
    let (mut next, mut stride) = (guess, 1);
    while low < high {
        let at = next.clamp(low, high - 1);
        match make(at)? {
            Some(made) => {
                (high, found) = (at, Some(made));
                next = at.saturating_sub(stride);
            }
            None => {
                low = at + 1;
                next = at + stride;
            }
        }
        stride *= 2;
        if low > first && high <= last {
            next = low + (high - low) / 2;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewest_finds_the_minimum_in_few_calls() {
        for last in [0, 1, 2, 7, 1000] {
            for (min, guess) in (1..last + 2).flat_map(|min| [1, min, 500, 5000].map(|guess| (min, guess))) {
                let mut calls = 0;
                let make = |n: usize| {
                    calls += 1;
                    assert!((1..=last).contains(&n));
                    Ok((n >= min).then_some(n))
                };
                let found = fewest(1, last, guess, make).unwrap();
                assert_eq!(found, (min <= last).then_some(min), "{min} of {last} from {guess}");
                let max_calls = if guess == min { 3 } else { 22 };
                assert!(calls <= max_calls, "{calls} tries for {min} of {last} from {guess}");
            }
        }
        assert!(matches!(fewest(1, 9, 4, |_| Err::<Option<u8>, _>(Error::Cancelled)), Err(Error::Cancelled)));
    }
}
