//! What a session has read, token by token, in memory and in files.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::forward::{CHUNK, Phase};

/// A token that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its id.
    pub id: u32,
    /// How it was read.
    pub phase: Phase,
    /// Whether a pass began with it: the tokens of a prompt are read many at once, and on a GPU the last bits depend on
    /// which.
    pub first: bool,
}

/// Returns the steps that read `ids` as a prompt.
pub fn prefilled(ids: &[u32]) -> impl Iterator<Item = Step> {
    ids.iter().enumerate().map(|(i, &id)| Step { id, phase: Phase::Prefill, first: i % CHUNK == 0 })
}

/// Returns the step that reads a generated token.
pub fn decoded(id: u32) -> Step {
    Step { id, phase: Phase::Decode, first: true }
}

/// Returns the passes in which `steps` are read.
pub fn passes(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    steps.chunk_by(|_, next| !next.first)
}

/// Returns how many steps `a` and `b` have in common at their beginning.
pub fn common_steps(a: &[Step], b: &[Step]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Steps as a file holds them.
#[derive(Serialize, Deserialize)]
struct SavedSteps {
    ids: Vec<u32>,
    /// The passes of prompts: first id and length. The other ids were read one at a time.
    prompts: Vec<(usize, usize)>,
}

impl SavedSteps {
    /// Returns `steps` for a file; they begin with a pass.
    fn new(steps: &[Step]) -> Self {
        let mut at = 0;
        let mut prompts = Vec::new();
        for pass in passes(steps) {
            if pass[0].phase == Phase::Prefill {
                prompts.push((at, pass.len()));
            }
            at += pass.len();
        }
        Self { ids: steps.iter().map(|step| step.id).collect(), prompts }
    }

    /// Returns the steps of a file; `None` if passes are empty, overlap, or go on where there are no ids.
    fn steps(&self) -> Option<Vec<Step>> {
        let mut steps: Vec<_> = self.ids.iter().map(|&id| decoded(id)).collect();
        let mut end = 0;
        for &(first, length) in &self.prompts {
            let pass =
                steps.get_mut(first..first.checked_add(length)?).filter(|pass| first >= end && !pass.is_empty())?;
            end = first + length;
            for (i, step) in pass.iter_mut().enumerate() {
                (step.phase, step.first) = (Phase::Prefill, i == 0);
            }
        }
        Some(steps)
    }
}

/// Writes and reads steps as files hold them: `#[serde(with = "saved_steps")]`.
pub mod saved_steps {
    use super::*;

    /// Writes `steps`, which begin with a pass.
    pub fn serialize<S: Serializer>(steps: &[Step], serializer: S) -> Result<S::Ok, S::Error> {
        SavedSteps::new(steps).serialize(serializer)
    }

    /// Returns the steps; fails if they have passes that can't be.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Step>, D::Error> {
        let broken = || D::Error::custom("it has steps whose passes are empty, overlap or have no ids");
        SavedSteps::deserialize(deserializer)?.steps().ok_or_else(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_must_follow_each_other_where_there_are_ids() {
        let steps = |prompts: &[(usize, usize)]| SavedSteps { ids: vec![1; 6], prompts: prompts.into() }.steps();
        let rules: Vec<_> = steps(&[(0, 2), (3, 3)]).unwrap().iter().map(|s| (s.phase, s.first)).collect();
        let [first, more] = [true, false].map(|first| (Phase::Prefill, first));
        assert_eq!(rules, [first, more, (Phase::Decode, true), first, more, more]);
        for broken in [&[(0, 7)][..], &[(6, 1)], &[(2, 0)], &[(1, usize::MAX)], &[(0, 3), (2, 1)], &[(3, 1), (0, 1)]] {
            assert_eq!(steps(broken), None, "{broken:?}");
        }
    }
}
