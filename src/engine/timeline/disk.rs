//! A timeline in a file: the steps, the state at their end, and those at the checkpoints that are worth keeping.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Step, Timeline, saved_steps};
use crate::{
    Error, Mismatch, Result,
    engine::Session,
    state::{read_session, write_session},
};

#[derive(Serialize, Deserialize)]
struct Header<T> {
    /// For people.
    model: String,
    fingerprint: String,
    cache_type: String,
    #[serde(with = "saved_steps")]
    steps: Vec<Step>,
    /// How many steps are before each checkpoint, the last first.
    #[serde(rename = "marks")]
    checkpoints: Vec<usize>,
    /// What the caller saves with it.
    more: T,
}

impl<T> Header<T> {
    /// Fails unless the file belongs to `session`'s model and fits.
    fn check(&self, session: &Session<'_>, path: &Path) -> Result<()> {
        let file = || path.display().to_string();
        let other = |why| Err(Error::SessionMismatch { file: file(), why });
        let model = session.model();
        let (context, cache) = (session.context(), session.cache_type().name());
        if self.fingerprint != model.fingerprint() {
            return other(Mismatch::Model(self.model.clone()));
        }
        if self.cache_type != cache {
            return other(Mismatch::CacheType { saved: self.cache_type.clone(), cache });
        }
        let tokens = self.steps.len();
        if tokens > context {
            return other(Mismatch::Tokens { tokens, context });
        }
        let checkpoints = &self.checkpoints;
        let in_order = checkpoints.is_sorted_by(|a, b| a > b) && checkpoints.iter().all(|at| (1..=tokens).contains(at));
        if !in_order || self.steps.iter().any(|step| step.id as usize >= model.config().vocab) {
            return Err(Error::format(file(), "contradicts itself; restore it from a copy"));
        }
        Ok(())
    }
}

impl Timeline<'_> {
    /// Writes the steps and the state to `path`, with `more` and, if asked to, `with_checkpoints`.
    pub fn save(&mut self, path: &Path, more: &impl Serialize, with_checkpoints: bool) -> Result<()> {
        let model = self.session.model();
        let checkpoints = if with_checkpoints { &*self.checkpoints.current } else { &[] };
        let header = Header {
            model: model.metadata().string("general.name").unwrap_or_default().into(),
            fingerprint: model.fingerprint().into(),
            cache_type: self.session.cache_type().name().into(),
            steps: self.steps.clone(),
            checkpoints: checkpoints.iter().rev().map(|checkpoint| checkpoint.at).collect(),
            more,
        };
        let mut payload = Vec::new();
        if !checkpoints.is_empty() {
            let end = self.session.checkpoint(true)?;
            for checkpoint in checkpoints.iter().rev() {
                self.session.restore(&checkpoint.state);
                self.session.write_image(false, &mut payload);
                write_logits(&checkpoint.logits, &mut payload);
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
        let session = &self.session;
        let image_bytes = |at, with_global_layers| session.image_bytes(at, with_global_layers);
        let ((more, steps, images, logits_bytes), payload) = read_session(path, |header: Header<T>| {
            header.check(session, path)?;
            let steps = header.steps;
            let logits = if steps.is_empty() { 0 } else { session.model().config().vocab * size_of::<f32>() };
            let images: Vec<_> = header.checkpoints.iter().map(|&at| (at, image_bytes(at, false))).collect();
            let checkpoints: usize = images.iter().map(|(_, bytes)| bytes + logits).sum();
            let payload = checkpoints + image_bytes(steps.len(), true) + logits;
            let more = check(header.more, &steps)?;
            Ok(((more, steps, images, logits), payload))
        })?;

        self.clear()?;
        self.checkpoints.stashes.clear();
        let mut rest = &payload[..];
        let mut read = |bytes| rest.split_off(..bytes).unwrap_or_default();
        let mut checkpoints = Vec::new();
        for (at, bytes) in images {
            self.session.read_image(at, false, read(bytes));
            checkpoints.push((at, self.session.checkpoint(false)?, read_logits(read(logits_bytes))));
        }
        for (at, state, logits) in checkpoints.into_iter().rev() {
            let checkpoint = self.checkpoints.make(at, state, &logits);
            self.checkpoints.push(checkpoint);
        }
        self.session.read_image(steps.len(), true, read(self.session.image_bytes(steps.len(), true)));
        self.logits = read_logits(read(logits_bytes));
        self.steps = steps;
        Ok(more)
    }
}

fn write_logits(logits: &[f32], out: &mut Vec<u8>) {
    out.extend(logits.iter().flat_map(|v| v.to_le_bytes()));
}

fn read_logits(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
