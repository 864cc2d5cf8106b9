//! Turns of a conversation and the branches they form.

use serde::{Deserialize, Serialize};

use super::format::Fingerprint;
use crate::{
    engine::timeline::{Step, common_steps, saved_steps},
    text::{Message, Role},
};

/// What a reply responds to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Query<'a> {
    /// A user message.
    User(&'a str),
    /// The results of the tool calls in the previous reply.
    Results(&'a [String]),
}

impl<'a> Query<'a> {
    /// Returns the messages of the query.
    pub fn messages(self) -> impl Iterator<Item = Message<'a>> {
        let (user, results) = match self {
            Self::User(user) => (Some(user), &[][..]),
            Self::Results(results) => (None, results),
        };
        let user = user.into_iter().map(|user| Message::new(Role::User, user));
        user.chain(results.iter().map(|result| Message::new(Role::Tool, result)))
    }
}

/// A turn: a user message or tool results, and the reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The user message; empty if the turn answers tool calls.
    pub user: String,
    /// The results of the tool calls in the previous reply, if this turn answers them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<String>,
    /// The reply of the model.
    pub reply: String,
    /// Number of steps from the start of the conversation to the end of the prompt; the reply's steps follow.
    pub(super) prompt: usize,
    /// The fingerprint of that prompt's text; version 0.1 did not save it.
    #[serde(rename = "said", default, skip_serializing_if = "Option::is_none")]
    pub(super) fingerprint: Option<Fingerprint>,
    /// Number of leading steps shared with the previous turn.
    pub(super) kept: usize,
    /// The steps after them, to the end of the reply. They may lack the last token of the reply or include part of a
    /// stop string. The first step is a pass.
    #[serde(with = "saved_steps")]
    pub(super) steps: Vec<Step>,
}

impl Turn {
    /// Whether the turn continues with tool results instead of a user message.
    pub fn answers_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// Returns what the reply responds to.
    pub(super) fn query(&self) -> Query<'_> {
        if self.answers_results() { Query::Results(&self.results) } else { Query::User(&self.user) }
    }

    /// Returns the number of steps from the start of the conversation to the end of the reply.
    pub(super) fn end(&self) -> usize {
        self.kept + self.steps.len()
    }
}

/// A system message and the turns that follow it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    pub system: Option<String>,
    pub turns: Vec<Turn>,
}

impl Branch {
    /// Returns the number of steps from the start to the end of the last reply.
    pub fn end(&self) -> usize {
        self.turns.last().map_or(0, Turn::end)
    }

    /// Returns all steps up to the end of the last reply.
    pub fn steps(&self) -> Vec<Step> {
        self.steps_of(self.turns.len())
    }

    /// Returns all steps up to the end of the first `turns` turns.
    pub fn steps_of(&self, turns: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for turn in &self.turns[..turns] {
            steps.truncate(turn.kept);
            steps.extend(&turn.steps);
        }
        steps
    }

    /// Adds a turn that ends after `steps`, counted from the start of the conversation. The first `prompt` of them are
    /// its prompt, whose text has this `fingerprint`.
    pub(super) fn push(
        &mut self,
        query: Query<'_>,
        reply: &str,
        prompt: usize,
        fingerprint: Option<Fingerprint>,
        mut steps: Vec<Step>,
    ) {
        let common = common_steps(&self.steps(), &steps);
        let kept = (0..=common).rev().find(|&at| steps.get(at).is_none_or(|step| step.first)).unwrap_or(0);
        let (user, results) = match query {
            Query::User(user) => (user.into(), Vec::new()),
            Query::Results(results) => (String::new(), results.to_vec()),
        };
        let (reply, steps) = (reply.into(), steps.split_off(kept));
        self.turns.push(Turn { user, results, reply, prompt, fingerprint, kept, steps });
    }

    /// Returns the first turn at or after `at` that starts an exchange. An exchange is a turn with a user message and
    /// the turns that answer its tool calls.
    pub(super) fn exchange_from(&self, at: usize) -> usize {
        self.turns[at..].iter().position(|turn| !turn.answers_results()).map_or(self.turns.len(), |i| at + i)
    }

    /// Returns the first turn of the last `count` exchanges; `None` if there are fewer.
    pub(super) fn last_exchanges(&self, count: usize) -> Option<usize> {
        let mut starts = self.turns.iter().enumerate().rev().filter(|(_, turn)| !turn.answers_results());
        starts.nth(count.checked_sub(1)?).map(|(start, _)| start)
    }

    /// Returns the number of exchanges.
    pub(super) fn exchanges(&self) -> usize {
        self.turns.iter().filter(|turn| !turn.answers_results()).count()
    }

    /// Whether the branch starts with a user message, every turn keeps only steps that exist, and its prompt is within
    /// its steps.
    pub fn is_consistent(&self) -> bool {
        if self.turns.first().is_some_and(Turn::answers_results) {
            return false;
        }
        let end = self
            .turns
            .iter()
            .try_fold(0, |before, turn| (turn.kept <= before && turn.prompt <= turn.end()).then(|| turn.end()));
        end.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::timeline::{decoded, prefilled};

    #[test]
    fn turns_share_whole_passes_with_the_previous_turn() {
        let first: Vec<Step> = prefilled(&[1, 2, 3]).chain([4, 5].map(decoded)).collect();
        let shorter: Vec<Step> = prefilled(&[1, 2]).chain([decoded(6)]).collect();
        let other = [&first[..4], &prefilled(&[7, 8]).collect::<Vec<_>>()].concat();
        let mut branch = Branch::default();
        for (i, (steps, kept)) in [(&first, 0), (&first, 5), (&other, 4), (&shorter, 2), (&first, 0)].iter().enumerate()
        {
            branch.push(Query::User(""), "", 1, None, steps.to_vec());
            assert_eq!((branch.turns[i].kept, branch.end()), (*kept, steps.len()));
            assert!(branch.steps() == **steps && branch.is_consistent());
        }
        assert_eq!(branch.steps_of(3), other);
        let saved = serde_json::to_string(&branch).unwrap();
        assert_eq!(serde_json::from_str::<Branch>(&saved).unwrap(), branch);
    }

    #[test]
    fn turns_with_step_counts_out_of_range_are_inconsistent() {
        let turn = |kept, prompt, new: &[u32]| {
            let steps = prefilled(new).collect();
            let (user, results, reply) = (String::new(), Vec::new(), String::new());
            Turn { user, results, reply, prompt, fingerprint: None, kept, steps }
        };
        for (kept, prompt, good) in [(5, 6, true), (6, 6, false), (usize::MAX, 6, false), (5, 7, false), (0, 1, true)] {
            let turns = vec![turn(0, 5, &[1; 5]), turn(kept, prompt, &[2])];
            assert_eq!(Branch { system: None, turns }.is_consistent(), good, "{kept}, {prompt}");
        }
    }

    #[test]
    fn exchanges_start_with_a_user_message() {
        let mut branch = Branch::default();
        let results = ["5".to_owned()];
        for query in [Query::User("a"), Query::User("b"), Query::Results(&results), Query::Results(&results)] {
            branch.push(query, "", 1, None, prefilled(&[1]).collect());
        }
        branch.push(Query::User("c"), "", 1, None, prefilled(&[1]).collect());
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| branch.exchange_from(at)), [0, 1, 4, 4, 4, 5]);
        assert_eq!([0, 1, 2, 3, 4].map(|count| branch.last_exchanges(count)), [None, Some(4), Some(1), Some(0), None]);
        assert_eq!(branch.exchanges(), 3);
        let saved = serde_json::to_string(&branch).unwrap();
        assert_eq!(serde_json::from_str::<Branch>(&saved).unwrap(), branch);
        assert!(branch.is_consistent());
        branch.turns.drain(..2);
        assert!(!branch.is_consistent());
    }
}
