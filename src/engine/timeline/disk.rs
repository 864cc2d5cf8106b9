//! A timeline in a file: the way, the state at its end, and the states at the marks that are worth keeping.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Mark, Step, Timeline, decoded, passes};
use crate::{
    Error, Mismatch, Result,
    forward::Phase,
    state::{read_session, write_session},
};

/// Steps as a file holds them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedSteps {
    ids: Vec<u32>,
    /// The passes of prompts: first id and length. The other ids were read one at a time.
    prompts: Vec<(usize, usize)>,
}

impl SavedSteps {
    /// For a file; `steps` begin with a pass.
    pub fn new(steps: &[Step]) -> Self {
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// From a file; `None` if passes are empty, overlap, or go on where there are no ids.
    pub fn steps(&self) -> Option<Vec<Step>> {
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

#[derive(Serialize, Deserialize)]
struct Header<T> {
    /// For people.
    model: String,
    fingerprint: String,
    cache_type: String,
    steps: SavedSteps,
    /// Places of the marks, the last first.
    marks: Vec<usize>,
    /// What the caller saves with it.
    more: T,
}

impl Timeline<'_> {
    /// Writes the way and the state to `path`, with `more`; `marks`: the marks too.
    pub fn save(&mut self, path: &Path, more: &impl Serialize, marks: bool) -> Result<()> {
        let model = self.session.model();
        let header = Header {
            model: model.metadata().string("general.name").unwrap_or_default().into(),
            fingerprint: model.fingerprint().into(),
            cache_type: self.session.cache_type().name().into(),
            steps: SavedSteps::new(&self.steps),
            marks: if marks { self.marks.iter().rev().map(|mark| mark.at).collect() } else { Vec::new() },
            more,
        };
        let mut payload = Vec::new();
        if !header.marks.is_empty() {
            let end = self.session.checkpoint(true)?;
            for mark in self.marks.iter().rev() {
                self.session.restore(&mark.point);
                self.session.write_image(false, &mut payload);
                write_logits(&mark.logits, &mut payload);
            }
            self.session.restore(&end);
        }
        self.session.write_image(true, &mut payload);
        write_logits(&self.logits, &mut payload);
        write_session(path, &header, &payload)
    }

    /// Becomes what was saved at `path`, and returns what `check` makes of what was saved with it and the steps. If that
    /// is refused, by `check` too, nothing has changed.
    pub fn load<T: DeserializeOwned, U>(
        &mut self,
        path: &Path,
        check: impl FnOnce(T, &[Step]) -> Result<U>,
    ) -> Result<U> {
        let file = || path.display().to_string();
        let other = |why| Error::SessionMismatch { file: file(), why };
        let model = self.session.model();
        let (context, cache) = (self.session.context(), self.session.cache_type().name());
        let vocab = model.config().vocab;
        let image_bytes = |at, grown| self.session.image_bytes(at, grown);
        let checked = read_session(path, |header: Header<T>| {
            if header.fingerprint != model.fingerprint() {
                return Err(other(Mismatch::Model(header.model)));
            }
            if header.cache_type != cache {
                return Err(other(Mismatch::CacheType { saved: header.cache_type, cache }));
            }
            let broken = || Error::format(file(), "contradicts itself; restore it from a copy");
            let tokens = header.steps.len();
            if tokens > context {
                return Err(other(Mismatch::Tokens { tokens, context }));
            }
            let marks = header.marks;
            if !marks.is_sorted_by(|a, b| a > b) || !marks.iter().all(|at| (1..=tokens).contains(at)) {
                return Err(broken());
            }
            let steps = header.steps.steps().ok_or_else(broken)?;
            if steps.iter().any(|step| step.id as usize >= vocab) {
                return Err(broken());
            }
            let logits = if tokens > 0 { vocab * size_of::<f32>() } else { 0 };
            let sizes: Vec<_> = marks.iter().map(|&at| image_bytes(at, false)).collect();
            let parts = sizes.iter().map(|size| size + logits).sum::<usize>();
            let expected = parts + image_bytes(tokens, true) + logits;
            let more = check(header.more, &steps)?;
            Ok(((more, steps, marks, sizes, logits, parts), expected))
        });
        let ((more, steps, marks, sizes, logits, parts), payload) = checked?;
        let tokens = steps.len();

        self.clear()?;
        self.clear_shelf();
        let (mut rest, end) = payload.split_at(parts);
        for (&at, size) in marks.iter().zip(sizes) {
            let (image, after) = rest.split_at(size);
            let (mark_logits, after) = after.split_at(logits);
            rest = after;
            self.session.read_image(at, false, image);
            let (point, logits) = (self.session.checkpoint(false)?.into(), read_logits(mark_logits).into());
            self.marks.insert(0, Mark { at, point, logits, age: 0 });
        }
        for mark in &mut self.marks {
            self.age += 1;
            mark.age = self.age;
        }
        let (image, end_logits) = end.split_at(end.len() - logits);
        self.session.read_image(tokens, true, image);
        self.logits = read_logits(end_logits);
        self.steps = steps;
        self.evict();
        Ok(more)
    }
}

fn write_logits(logits: &[f32], out: &mut Vec<u8>) {
    out.extend(logits.iter().flat_map(|v| v.to_le_bytes()));
}

fn read_logits(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
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
