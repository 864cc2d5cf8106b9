//! What can be done about the past: take turns back, change the system message, branch, make room.

use super::{Branch, Conversation, Overflow, Turn, branch::Query, prompt::Prompt};
use crate::{
    Error, Result,
    engine::timeline::{Step, Watch, prefilled},
};

impl Conversation<'_> {
    /// Takes back the last `count` messages, with all that answers them, and returns these turns, the first first: calls of
    /// tools and their results go with the message that led to them.
    pub fn undo(&mut self, count: usize, watch: &Watch<'_>) -> Result<Vec<Turn>> {
        let Some(start) = self.current.last_exchanges(count) else {
            let turns = self.current.exchanges();
            let what = format!("there are {turns} turns to take back; name a number from 1 to {turns}");
            return Err(if turns == 0 { Error::NothingSaid } else { Error::Request(what) });
        };
        let gone = self.current.turns.split_off(start);
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
        self.speculator.clear();
        self.timeline.clear()
    }

    /// Sets the system message; what was said is read again after it.
    pub fn set_system(&mut self, system: Option<&str>, watch: &Watch<'_>) -> Result<()> {
        let least = system.map_or(0, |system| self.tokenizer.least_tokens(system));
        if least > self.timeline.context() {
            return Err(self.full(least));
        }
        let replayed = self.replay_turns(system.map(str::to_owned), 0, watch)?;
        if replayed.end() > self.timeline.context() {
            return Err(self.full(replayed.end()));
        }
        self.current = replayed;
        self.sync(watch)
    }

    /// Returns the current branch without its first `dropped` turns, as it is read after nothing but `system`; as far as the
    /// first turn that is beyond the context, if one is.
    fn replay_turns(&self, system: Option<String>, dropped: usize, watch: &Watch<'_>) -> Result<Branch> {
        let mut replayed = Branch { system, turns: Vec::new() };
        let mut read: Vec<Step> = self.current.steps_of(dropped);
        for turn in &self.current.turns[dropped..] {
            Error::check_cancelled(watch.cancel)?;
            read.truncate(turn.kept);
            read.extend(&turn.steps);
            let Prompt { mut steps, said, .. } = self.prompt_after(&replayed, turn.query())?;
            let prompt = steps.len();
            let reply: Vec<u32> = read[turn.prompt..].iter().map(|step| step.id).collect();
            steps.extend(prefilled(&reply));
            replayed.push(turn.query(), &turn.reply, prompt, said, steps);
            if replayed.end() > self.timeline.context() {
                break;
            }
        }
        Ok(replayed)
    }

    /// Returns a branch of the last turns that leave half of the context free, and the prompt that `query` makes after
    /// them; at least without the oldest turn. A message begins it, and what results answer stays. `None` if turns are not to
    /// be dropped, or there is no room even so.
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
        // What is left without the first `dropped` turns, if it is short enough.
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
        fewest(1, last, self.likely_to_drop(last), without).or_else(|e| match e {
            Error::Cancelled => Err(e),
            _ => Ok(None),
        })
    }

    /// Returns without how many turns, `last` at most, the rest leaves half of the context free, by the steps that it took when
    /// it was read.
    fn likely_to_drop(&self, last: usize) -> usize {
        let end = self.used();
        let left = |turn: &Turn| end.saturating_sub(turn.end());
        1 + self.current.turns[..last.saturating_sub(1)]
            .partition_point(|turn| left(turn) > self.timeline.context() / 2)
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

/// Returns what `make` makes of the least number from `first` to `last` of which it makes something, if there is one: it makes
/// something of all larger ones too. Begins at `guess`, and tries few numbers if that is near.
fn fewest<T>(
    first: usize,
    last: usize,
    guess: usize,
    mut make: impl FnMut(usize) -> Result<Option<T>>,
) -> Result<Option<T>> {
    // None below `low` is enough; `found` is made of `high`, which is.
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
    fn the_fewest_are_found_with_few_tries() {
        for last in [0, 1, 2, 7, 1000] {
            for (least, guess) in (1..last + 2).flat_map(|least| [1, least, 500, 5000].map(|guess| (least, guess))) {
                let mut tries = 0;
                let make = |n: usize| {
                    tries += 1;
                    assert!((1..=last).contains(&n));
                    Ok((n >= least).then_some(n))
                };
                let found = fewest(1, last, guess, make).unwrap();
                assert_eq!(found, (least <= last).then_some(least), "{least} of {last} from {guess}");
                let most = if guess == least { 3 } else { 22 };
                assert!(tries <= most, "{tries} tries for {least} of {last} from {guess}");
            }
        }
        assert!(matches!(fewest(1, 9, 4, |_| Err::<Option<u8>, _>(Error::Cancelled)), Err(Error::Cancelled)));
    }
}
