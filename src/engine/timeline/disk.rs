//! A timeline in a file: the steps, the state at their end, and those at the checkpoints that are worth keeping.

use std::{collections::VecDeque, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Step, Timeline, saved_steps};
use crate::{
    Error, Mismatch, Result,
    engine::Session,
    state::{image_is_finite, read_session, write_session},
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
        if self.fingerprint != model.fingerprint()? {
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
        let checkpoints = if with_checkpoints { self.checkpoints.current.clone() } else { VecDeque::new() };
        let header = Header {
            model: model.metadata().string("general.name").unwrap_or_default().into(),
            fingerprint: model.fingerprint()?.into(),
            cache_type: self.session.cache_type().name().into(),
            steps: self.steps.clone(),
            checkpoints: checkpoints.iter().rev().map(|checkpoint| checkpoint.at).collect(),
            more,
        };
        if checkpoints.is_empty() {
            return write_session(path, &header, |write| write(&self.image(true, &self.logits.clone())));
        }
        let end = self.session.checkpoint(true)?;
        let written = write_session(path, &header, |write| {
            for checkpoint in checkpoints.iter().rev() {
                self.session.restore(checkpoint.state());
                write(&self.image(false, checkpoint.logits()))?;
            }
            self.session.restore(&end);
            write(&self.image(true, &self.logits.clone()))
        });
        self.session.restore(&end); // a write may have failed in between
        written
    }

    /// Returns the session's state, without global layers the part of it that a checkpoint has, and `logits` as bytes.
    fn image(&mut self, with_global_layers: bool, logits: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.session.write_image(with_global_layers, &mut bytes);
        bytes.extend(logits.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }

    /// Becomes what was saved at `path`, and returns what `check` makes of what was saved with it and the steps. If that
    /// is refused, by `check` too, nothing has changed.
    pub fn load<T: DeserializeOwned, U>(
        &mut self,
        path: &Path,
        check: impl FnOnce(T, &[Step]) -> Result<U>,
    ) -> Result<U> {
        let (session, budget) = (&self.session, self.checkpoints.budget());
        let ((more, steps, images), payload) = read_session(path, |header: Header<T>| {
            header.check(session, path)?;
            let steps = header.steps;
            let logits = if steps.is_empty() { 0 } else { session.model().config().vocab * size_of::<f32>() };
            let at = header.checkpoints.iter().map(|&at| (at, false)).chain([(steps.len(), true)]);
            let mut payload = 0usize;
            let image = |(at, end)| {
                let image = Image { at, end, start: payload, state: session.image_bytes(at, end), logits };
                payload = payload.saturating_add(image.bytes());
                image
            };
            let images: Vec<Image> = at.map(image).collect();
            let more = check(header.more, &steps)?;
            Ok(((more, steps, images), payload))
        })?;
        // The last checkpoints come first: as many as there is room for, and the end.
        let mut room = budget;
        let kept: Vec<&Image> = images
            .iter()
            .filter(|image| {
                let fits = image.end || image.bytes() <= room;
                room = if fits { room.saturating_sub(image.bytes()) } else { 0 };
                fits
            })
            .collect();
        for image in &kept {
            let bytes = payload.read(image.start, image.bytes())?;
            let (state, logits) = bytes.split_at(image.state);
            let (config, cache) = (session.model().config(), session.cache_type());
            let finite = image_is_finite(config, cache, image.at, image.end, state);
            if !finite || read_logits(logits).iter().any(|v| !v.is_finite()) {
                let what = "is damaged: it holds values that are not finite; restore it from a copy";
                return Err(Error::format(path.display().to_string(), what));
            }
        }

        self.clear()?;
        self.checkpoints.stashes.clear();
        let mut checkpoints = Vec::new();
        for image in &kept {
            let bytes = payload.read(image.start, image.bytes())?;
            let (state, logits) = bytes.split_at(image.state);
            self.session.read_image(image.at, image.end, state);
            if image.end {
                self.logits = read_logits(logits);
            } else {
                checkpoints.push((image.at, self.session.checkpoint(false)?, read_logits(logits)));
            }
        }
        for (at, state, logits) in checkpoints.into_iter().rev() {
            let checkpoint = self.checkpoints.make(at, state, &logits);
            self.checkpoints.push(checkpoint);
        }
        self.steps = steps;
        if let Err(e) = payload.check() {
            self.clear()?;
            return Err(e);
        }
        Ok(more)
    }
}

/// A state in a session file.
struct Image {
    /// Steps before it.
    at: usize,
    /// Whether it is the end, with global layers.
    end: bool,
    /// Bytes before it.
    start: usize,
    /// Bytes of it, and of its logits.
    state: usize,
    logits: usize,
}

impl Image {
    fn bytes(&self) -> usize {
        self.state + self.logits
    }
}

fn read_logits(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
