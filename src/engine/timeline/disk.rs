//! A timeline in a session file: steps, the state at their end, and checkpoints.

use std::{collections::VecDeque, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Step, Timeline, saved_steps};
use crate::{
    Error, Mismatch, Result,
    engine::Session,
    format::CacheType,
    model::Config,
    state::{ImageOf, Payload, image_is_finite, read_session, restored, thinned, thinned_bytes, write_session},
};

#[derive(Serialize, Deserialize)]
struct Header<T> {
    /// The model's name, informational.
    model: String,
    fingerprint: String,
    cache_type: String,
    #[serde(with = "saved_steps")]
    steps: Vec<Step>,
    /// Number of steps before each checkpoint, last first.
    #[serde(rename = "marks")]
    checkpoints: Vec<usize>,
    /// Whether each checkpoint's image omits the rows that the next later image has. Absent in version 0.1.
    #[serde(default)]
    thin: bool,
    /// The caller's data.
    more: T,
}

impl<T> Header<T> {
    /// Fails unless the file belongs to `session`'s model and fits.
    fn check(&self, session: &Session<'_>, path: &Path) -> Result<()> {
        let file = || path.display().to_string();
        let other = |reason| Err(Error::SessionMismatch { file: file(), reason });
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
            return Err(Error::format(file(), "is inconsistent; restore it from a copy"));
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
            thin: true,
            more,
        };
        if checkpoints.is_empty() {
            return write_session(path, &header, |write| write(&self.image(true, &self.logits.clone())));
        }
        let end = self.session.checkpoint(true)?;
        let (config, cache) = (model.config(), self.session.cache_type());
        let mut later = ImageOf { tokens: self.steps.len(), global_layers: true };
        let written = write_session(path, &header, |write| {
            for checkpoint in checkpoints.iter().rev() {
                self.session.restore(checkpoint.state());
                let of = ImageOf { tokens: checkpoint.at, global_layers: false };
                write(&thinned(config, cache, of, later, &self.image(false, &[])))?;
                write(&logit_bytes(checkpoint.logits()))?;
                later = of;
            }
            self.session.restore(&end);
            write(&self.image(true, &self.logits.clone()))
        });
        self.session.restore(&end); // also after a failed write
        written
    }

    /// Returns the session's state and `logits` as bytes; without global layers, the part in a checkpoint.
    fn image(&mut self, with_global_layers: bool, logits: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.session.write_image(with_global_layers, &mut bytes);
        bytes.extend(logit_bytes(logits));
        bytes
    }

    /// Loads the timeline saved at `path`, and returns the result of `check` on the caller's data and the steps. On an
    /// error, including one from `check`, nothing has changed.
    pub fn load<T: DeserializeOwned, U>(
        &mut self,
        path: &Path,
        check: impl FnOnce(T, &[Step]) -> Result<U>,
    ) -> Result<U> {
        let (session, budget) = (&self.session, self.checkpoints.budget());
        let (config, cache) = (session.model().config(), session.cache_type());
        let ((more, steps, images), payload) = read_session(path, |header: Header<T>| {
            header.check(session, path)?;
            let steps = header.steps;
            let logits = if steps.is_empty() { 0 } else { config.vocab * size_of::<f32>() };
            let end = ImageOf { tokens: steps.len(), global_layers: true };
            let at = header.checkpoints.iter().map(|&tokens| ImageOf { tokens, global_layers: false }).chain([end]);
            let (mut payload, mut later) = (0usize, end);
            let image = |of: ImageOf| {
                let all = session.image_bytes(of.tokens, of.global_layers);
                let later = (header.thin && !of.global_layers).then(|| std::mem::replace(&mut later, of));
                let stored = later.map_or(all, |later| thinned_bytes(config, cache, of, later));
                let image = Image { of, later, start: payload, stored, all, logits };
                payload = payload.saturating_add(image.bytes());
                image
            };
            let images: Vec<Image> = at.map(image).collect();
            let more = check(header.more, &steps)?;
            Ok(((more, steps, images), payload))
        })?;
        // The latest checkpoints come first: load as many as fit, and the end.
        let mut remaining = budget;
        let kept: Vec<&Image> = images
            .iter()
            .filter(|image| {
                let fits = image.of.global_layers || image.all + image.logits <= remaining;
                remaining = if fits { remaining.saturating_sub(image.all + image.logits) } else { 0 };
                fits
            })
            .collect();
        for_each_image(&payload, config, cache, &kept, |image, state, logits| {
            let finite = image_is_finite(config, cache, image.of.tokens, image.of.global_layers, state);
            if finite && logits.iter().all(|v| v.is_finite()) {
                return Ok(());
            }
            let problem = "is damaged: it contains values that are not finite; restore it from a copy";
            Err(Error::format(path.display().to_string(), problem))
        })?;

        self.clear()?;
        self.checkpoints.stashes.clear();
        let mut checkpoints = Vec::new();
        for_each_image(&payload, config, cache, &kept, |image, state, logits| {
            self.session.read_image(image.of.tokens, image.of.global_layers, state);
            if image.of.global_layers {
                self.logits = logits;
            } else {
                checkpoints.push((image.of.tokens, self.session.checkpoint(false)?, logits));
            }
            Ok(())
        })?;
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
    of: ImageOf,
    /// The later state whose image has the omitted rows.
    later: Option<ImageOf>,
    /// Bytes before it.
    start: usize,
    /// Its size in bytes: in the file, in full, and of its logits.
    stored: usize,
    all: usize,
    logits: usize,
}

impl Image {
    fn bytes(&self) -> usize {
        self.stored + self.logits
    }
}

/// Calls `take` with each of `images`, ending with the end of the timeline, its full state and its logits.
fn for_each_image(
    payload: &Payload,
    config: &Config,
    cache: CacheType,
    images: &[&Image],
    mut take: impl FnMut(&Image, &[u8], Vec<f32>) -> Result<()>,
) -> Result<()> {
    let Some((end, checkpoints)) = images.split_last() else { return Ok(()) };
    let end_bytes = payload.read(end.start, end.bytes())?;
    let (end_state, end_logits) = end_bytes.split_at(end.stored);
    let mut later_state = end_state.to_vec();
    for image in checkpoints {
        let bytes = payload.read(image.start, image.bytes())?;
        let (stored, logits) = bytes.split_at(image.stored);
        let state = match image.later {
            Some(later) => restored(config, cache, image.of, later, stored, &later_state),
            None => stored.to_vec(),
        };
        take(image, &state, read_logits(logits))?;
        later_state = state;
    }
    take(end, end_state, read_logits(end_logits))
}

fn logit_bytes(logits: &[f32]) -> Vec<u8> {
    logits.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_logits(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
