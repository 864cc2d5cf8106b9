//! A session and the steps it has read. Checkpoints are kept in memory within a budget. Where one is missing, the steps to
//! it are read again, each by the rule by which it was read and together with the tokens that were read with it, so that
//! the outcome is the same to the last bit.

use std::sync::atomic::AtomicBool;

use super::{
    Step,
    checkpoints::{Checkpoint, Checkpoints, Stash},
    common_steps, decoded, passes, prefilled,
};
use crate::{
    Error, Result,
    engine::{Session, TokenModel},
    forward::Phase,
};

/// How a longer evaluation is watched.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Ends it.
    pub cancel: &'a AtomicBool,
    /// Gets how many tokens of how many are read.
    pub progress: &'a dyn Fn(usize, usize),
}

/// A session and the steps it has read.
pub struct Timeline<'m> {
    pub(super) session: Session<'m>,
    pub(super) steps: Vec<Step>,
    /// Logits after the last step; empty before the first.
    pub(super) logits: Vec<f32>,
    pub(super) checkpoints: Checkpoints,
    /// Tokens read since the beginning, those read again included.
    evaluated: usize,
    fell_back: bool,
}

impl<'m> Timeline<'m> {
    /// Returns a timeline that begins with an empty session; checkpoints take `budget` bytes at most.
    pub fn new(session: Session<'m>, budget: usize) -> Self {
        Self {
            session,
            steps: Vec::new(),
            logits: Vec::new(),
            checkpoints: Checkpoints::new(budget),
            evaluated: 0,
            fell_back: false,
        }
    }

    /// Returns the steps read so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Returns the ids read so far.
    pub fn ids(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.id).collect()
    }

    /// Returns the logits `[vocab]` after the last step; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Returns the session.
    pub fn session(&mut self) -> &mut Session<'m> {
        &mut self.session
    }

    /// Returns how many tokens were read since the beginning, those read again included.
    pub fn evaluated(&self) -> usize {
        self.evaluated
    }

    /// Returns why the CPU took over from a GPU, or a wider KV cache from another, if it did since this was last asked.
    pub fn fallback_reason(&mut self) -> Option<&Error> {
        let fell_back = std::mem::take(&mut self.fell_back);
        self.session.fallback().filter(|_| fell_back)
    }

    /// Returns how many tokens of text fit.
    pub fn context(&self) -> usize {
        self.session.context()
    }

    /// Makes a checkpoint after the last step.
    pub fn checkpoint(&mut self) -> Result<()> {
        if !self.steps.is_empty() && self.checkpoints.current.back().is_none_or(|last| last.at < self.steps.len()) {
            let checkpoint = self.make_checkpoint(false)?;
            self.checkpoints.push(checkpoint);
        }
        Ok(())
    }

    fn make_checkpoint(&mut self, with_global_layers: bool) -> Result<Checkpoint> {
        let state = self.session.checkpoint(with_global_layers)?;
        Ok(self.checkpoints.make(self.steps.len(), state, &self.logits))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) {
        self.session.restore(checkpoint.state());
        self.logits = checkpoint.logits().to_vec();
    }

    /// Returns how many bytes checkpoints take, those of stashed branches included.
    pub fn checkpoint_bytes(&self) -> usize {
        self.checkpoints.bytes()
    }

    /// Goes to the end of `target`: back to the last checkpoint before the first step that differs, and on from there.
    /// Without a step to read it takes no evaluation. When it is cancelled, the timeline ends somewhere on `target`.
    pub fn seek(&mut self, target: &[Step], watch: &Watch<'_>) -> Result<()> {
        let common = common_steps(&self.steps, target);
        // A pass that is longer in `target` is another pass.
        let ends_pass = |at: usize| target.get(at).is_none_or(|next| next.first);
        if common < self.steps.len() || !ends_pass(common) {
            let checkpoints = &mut self.checkpoints.current;
            while checkpoints.back().is_some_and(|last| last.at > common || !ends_pass(last.at)) {
                checkpoints.pop_back();
            }
            self.go_back()?;
        }
        self.read(&target[self.steps.len()..], watch)
    }

    /// What the session holds after `failure` is anybody's guess: goes back to the last checkpoint that there still is.
    fn recover(&mut self, failure: Error) -> Result<()> {
        if matches!(failure, Error::Gpu(_)) {
            self.checkpoints.drop_all(); // they were in its memory
        }
        self.go_back().and(Err(failure))
    }

    /// Goes back to the last checkpoint, or to the beginning if there is none.
    fn go_back(&mut self) -> Result<()> {
        let Some(checkpoint) = self.checkpoints.current.back().cloned() else { return self.clear() };
        self.restore(&checkpoint);
        self.steps.truncate(checkpoint.at);
        Ok(())
    }

    /// Reads `steps`, each by its rule. If the GPU is lost meanwhile, the CPU reads all steps again and goes on; if the KV
    /// cache turns out too narrow, a wider one replaces it.
    fn read(&mut self, steps: &[Step], watch: &Watch<'_>) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        self.session.check_room(steps.len())?;
        let mut done = 0;
        for pass in passes(steps) {
            match self.read_pass(pass, done + pass.len() == steps.len(), watch.cancel) {
                Ok(()) => {}
                Err(Error::Cancelled) => return self.cancelled(done),
                Err(lost) if self.session.can_fall_back(&lost) => {
                    let all = [&self.steps, &steps[done..]].concat();
                    self.checkpoints.drop_all(); // they are in its memory
                    self.session.fall_back(lost)?;
                    self.fell_back = true;
                    self.clear()?;
                    return self.read(&all, watch);
                }
                Err(e) => return self.recover(e),
            }
            self.steps.extend(pass);
            self.evaluated += pass.len();
            done += pass.len();
            (watch.progress)(done, steps.len());
        }
        Ok(())
    }

    /// Ends a read that was cancelled after `done` tokens: the session has read those, and nothing of the pass it was in.
    fn cancelled(&mut self, done: usize) -> Result<()> {
        if done > 0 {
            match self.session.last_logits().map(<[f32]>::to_vec) {
                Ok(logits) => self.logits = logits,
                Err(e) => return self.recover(e),
            }
        }
        Err(Error::Cancelled)
    }

    /// Reads `pass` to its end or not at all, so that the steps are what the session has read; logits are computed after the last one
    /// only.
    fn read_pass(&mut self, pass: &[Step], last: bool, cancel: &AtomicBool) -> Result<()> {
        let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
        let logits = match (last, pass[0].phase) {
            (false, phase) => return self.session.advance(&ids, phase, cancel),
            (true, Phase::Prefill) => self.session.prefill(&ids, cancel)?,
            (true, Phase::Decode) => self.session.decode(pass[0].id)?,
        };
        self.logits = logits.to_vec();
        Ok(())
    }

    /// Forgets the steps and their checkpoints; stashed branches stay.
    pub fn clear(&mut self) -> Result<()> {
        self.session.clear()?;
        self.steps.clear();
        self.logits.clear();
        self.checkpoints.current.clear();
        Ok(())
    }

    /// Stashes a copy of the present branch as `name`, to go on with it later.
    pub fn stash(&mut self, name: &str) -> Result<()> {
        let end = if self.steps.is_empty() { None } else { Some(self.make_checkpoint(true)?) };
        self.checkpoints.stash(name, &self.steps, end);
        Ok(())
    }

    /// Goes to the branch that was stashed as `name`, if there is one with its end in memory. The present one is gone.
    pub fn unstash(&mut self, name: &str) {
        if let Some(Stash { steps, end: Some(end), checkpoints }) = self.checkpoints.stashes.remove(name) {
            self.restore(&end);
            (self.steps, self.checkpoints.current) = (steps, checkpoints);
        }
    }
}

impl TokenModel for Timeline<'_> {
    /// Reads nothing too, once something was read: the logits are known.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        let steps: Vec<Step> = prefilled(ids).collect();
        self.read(&steps, &Watch { cancel, progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.read(&[decoded(id)], &Watch { cancel: &AtomicBool::new(false), progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn most_guesses(&self) -> usize {
        self.session.most_guesses()
    }

    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        let Self { session, logits, .. } = self;
        let mut read = 0;
        let verified = session.verify_guesses(ids, &mut |after| {
            read += 1;
            logits.clear();
            logits.extend_from_slice(after);
            is_right(after)
        });
        self.steps.extend(ids[..read].iter().map(|&id| decoded(id)));
        self.evaluated += read;
        match verified {
            Some(outcome) => outcome,
            // Alone the token may do, or need what takes over from the GPU or the cache.
            None => is_right(self.decode(ids[0])?).map(drop),
        }
    }

    fn tokens(&self) -> usize {
        self.steps.len()
    }

    fn context(&self) -> usize {
        self.session.context()
    }
}
