//! A session's history, token by token, in memory and in files.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::forward::{CHUNK, Phase};

/// A processed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its id.
    pub id: u32,
    /// Its phase.
    pub phase: Phase,
    /// Whether it began a pass: prompt tokens are processed in batches, and on a GPU the last bits depend on the batch.
    pub first: bool,
}

/// Returns the steps of the prompt `ids`.
pub fn prefilled(ids: &[u32]) -> impl Iterator<Item = Step> {
    ids.iter().enumerate().map(|(i, &id)| Step { id, phase: Phase::Prefill, first: i % CHUNK == 0 })
}

/// Returns the step of a generated token.
pub fn decoded(id: u32) -> Step {
    Step { id, phase: Phase::Decode, first: true }
}

/// Divides `steps` into passes.
pub fn passes(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    steps.chunk_by(|_, next| !next.first)
}

/// Returns the length of the common prefix of `a` and `b`.
pub fn common_steps(a: &[Step], b: &[Step]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Steps as stored in a file.
#[derive(Serialize, Deserialize)]
struct SavedSteps {
    ids: Vec<u32>,
    /// Prefill passes: first id and length. The other ids were decoded one at a time.
    prompts: Vec<(usize, usize)>,
}

impl SavedSteps {
    /// Returns `steps` for a file; they start with a pass.
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

    /// Returns the steps from a file; `None` if passes are empty, overlap or exceed the ids.
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

/// Serializes steps in their file form: `#[serde(with = "saved_steps")]`.
pub mod saved_steps {
    use super::*;

    /// Serializes `steps`, which start with a pass.
    pub fn serialize<S: Serializer>(steps: &[Step], serializer: S) -> Result<S::Ok, S::Error> {
        SavedSteps::new(steps).serialize(serializer)
    }

    /// Deserializes steps; fails for impossible passes.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Step>, D::Error> {
        let broken = || D::Error::custom("it has steps whose passes are empty, overlap or have no ids");
        SavedSteps::deserialize(deserializer)?.steps().ok_or_else(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_passes_are_rejected() {
        let steps = |prompts: &[(usize, usize)]| SavedSteps { ids: vec![1; 6], prompts: prompts.into() }.steps();
        let rules: Vec<_> = steps(&[(0, 2), (3, 3)]).unwrap().iter().map(|s| (s.phase, s.first)).collect();
        let [first, more] = [true, false].map(|first| (Phase::Prefill, first));
        assert_eq!(rules, [first, more, (Phase::Decode, true), first, more, more]);
        for broken in [&[(0, 7)][..], &[(6, 1)], &[(2, 0)], &[(1, usize::MAX)], &[(0, 3), (2, 1)], &[(3, 1), (0, 1)]] {
            assert_eq!(steps(broken), None, "{broken:?}");
        }
    }
}
