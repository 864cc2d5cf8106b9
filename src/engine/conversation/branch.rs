//! Turns, and the branches that they make.

use serde::{Deserialize, Serialize};

use super::format::Said;
use crate::engine::timeline::{Step, common_steps, saved_steps};

/// A message and its reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// What the person said.
    pub user: String,
    /// What the model said.
    pub reply: String,
    /// How many steps, from the beginning of the conversation on, make the prompt; the reply's follow.
    pub(super) prompt: usize,
    /// The text of that prompt; version 0.1 did not save it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<Said>,
    /// How many steps at the beginning are those of the turn before.
    pub(super) kept: usize,
    /// The steps after them, to the end of the reply. They may lack the reply's last token, or have a part of a stop
    /// string. They begin with a pass.
    #[serde(with = "saved_steps")]
    pub(super) steps: Vec<Step>,
}

impl Turn {
    /// Returns how many steps there are from the beginning of the conversation to the end of the reply.
    pub(super) fn end(&self) -> usize {
        self.kept + self.steps.len()
    }
}

/// A system message and the turns after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    pub system: Option<String>,
    pub turns: Vec<Turn>,
}

impl Branch {
    /// Returns how many steps there are from the beginning to the end of the last reply.
    pub fn end(&self) -> usize {
        self.turns.last().map_or(0, Turn::end)
    }

    /// Returns everything read from the beginning to the end of the last reply.
    pub fn steps(&self) -> Vec<Step> {
        self.steps_of(self.turns.len())
    }

    /// Returns everything read from the beginning to the end of the first `turns` turns.
    pub fn steps_of(&self, turns: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for turn in &self.turns[..turns] {
            steps.truncate(turn.kept);
            steps.extend(&turn.steps);
        }
        steps
    }

    /// Adds a turn that ends after `steps`, from the beginning of the conversation on; `prompt` of them make its prompt, whose
    /// text is `said`.
    pub fn push(&mut self, user: &str, reply: &str, prompt: usize, said: Option<Said>, mut steps: Vec<Step>) {
        let common = common_steps(&self.steps(), &steps);
        let kept = (0..=common).rev().find(|&at| steps.get(at).is_none_or(|step| step.first)).unwrap_or(0);
        let (user, reply, steps) = (user.into(), reply.into(), steps.split_off(kept));
        self.turns.push(Turn { user, reply, prompt, said, kept, steps });
    }

    /// Whether every turn keeps what is there, and its prompt lies in its steps.
    pub fn is_consistent(&self) -> bool {
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
    fn a_turn_adds_whole_passes_to_the_one_before() {
        let first: Vec<Step> = prefilled(&[1, 2, 3]).chain([4, 5].map(decoded)).collect();
        let shorter: Vec<Step> = prefilled(&[1, 2]).chain([decoded(6)]).collect();
        let other = [&first[..4], &prefilled(&[7, 8]).collect::<Vec<_>>()].concat();
        let mut branch = Branch::default();
        for (i, (steps, kept)) in [(&first, 0), (&first, 5), (&other, 4), (&shorter, 2), (&first, 0)].iter().enumerate()
        {
            branch.push("", "", 1, None, steps.to_vec());
            assert_eq!((branch.turns[i].kept, branch.end()), (*kept, steps.len()));
            assert!(branch.steps() == **steps && branch.is_consistent());
        }
        assert_eq!(branch.steps_of(3), other);
        let saved = serde_json::to_string(&branch).unwrap();
        assert_eq!(serde_json::from_str::<Branch>(&saved).unwrap(), branch);
    }

    #[test]
    fn a_turn_can_keep_and_prompt_with_what_is_there_only() {
        let turn = |kept, prompt, new: &[u32]| {
            let steps = prefilled(new).collect();
            Turn { user: String::new(), reply: String::new(), prompt, said: None, kept, steps }
        };
        for (kept, prompt, good) in [(5, 6, true), (6, 6, false), (usize::MAX, 6, false), (5, 7, false), (0, 1, true)] {
            let turns = vec![turn(0, 5, &[1; 5]), turn(kept, prompt, &[2])];
            assert_eq!(Branch { system: None, turns }.is_consistent(), good, "{kept}, {prompt}");
        }
    }
}
