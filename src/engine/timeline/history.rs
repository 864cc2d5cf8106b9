//! A session with its token history. Checkpoints are kept within a memory budget. Without a checkpoint, steps are
//! replayed in their original phases and passes, so that the result is bit-identical.

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

/// Cancellation and progress of a long evaluation.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Cancels it.
    pub cancel: &'a AtomicBool,
    /// Receives the number of processed tokens and the total.
    pub progress: &'a dyn Fn(usize, usize),
}

/// A session with its token history.
pub struct Timeline<'m> {
    pub(super) session: Session<'m>,
    pub(super) steps: Vec<Step>,
    /// Logits after the last step; empty before the first.
    pub(super) logits: Vec<f32>,
    pub(super) checkpoints: Checkpoints,
    /// Tokens processed in total, including replayed ones.
    evaluated: usize,
    fell_back: bool,
}

impl<'m> Timeline<'m> {
    /// Returns a timeline over an empty session, with a checkpoint budget of `budget` bytes.
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

    /// Returns the steps so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Returns the ids so far.
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

    /// Returns the number of tokens processed in total, including replayed ones.
    pub fn evaluated(&self) -> usize {
        self.evaluated
    }

    /// Returns the reason of a fallback since the last call, if any.
    pub fn fallback_reason(&mut self) -> Option<&Error> {
        let fell_back = std::mem::take(&mut self.fell_back);
        self.session.fallback().filter(|_| fell_back)
    }

    /// Returns the context size in tokens.
    pub fn context(&self) -> usize {
        self.session.context()
    }

    /// Creates a checkpoint after the last step.
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

    /// Returns the size of all checkpoints in bytes, including stashed branches.
    pub fn checkpoint_bytes(&self) -> usize {
        self.checkpoints.bytes()
    }

    /// Seeks to the end of `target`: restores the last checkpoint before the first difference and replays from there.
    /// If nothing must be replayed, nothing is evaluated. If cancelled, the timeline ends somewhere on `target`.
    pub fn seek(&mut self, target: &[Step], watch: &Watch<'_>) -> Result<()> {
        let common = common_steps(&self.steps, target);
        // A pass that is longer in `target` differs.
        let ends_pass = |at: usize| target.get(at).is_none_or(|next| next.first);
        if common < self.steps.len() || !ends_pass(common) {
            let checkpoints = &mut self.checkpoints.current;
            while checkpoints.back().is_some_and(|last| last.at > common || !ends_pass(last.at)) {
                checkpoints.pop_back();
            }
            self.rewind_to_checkpoint()?;
        }
        self.read(&target[self.steps.len()..], watch)
    }

    /// The session's state after `failure` is undefined: restores the last checkpoint that remains.
    fn recover(&mut self, failure: Error) -> Result<()> {
        if matches!(failure, Error::Gpu(_)) {
            self.checkpoints.drop_all(); // they were in GPU memory
        }
        self.rewind_to_checkpoint().and(Err(failure))
    }

    /// Restores the last checkpoint, or the beginning.
    fn rewind_to_checkpoint(&mut self) -> Result<()> {
        let Some(checkpoint) = self.checkpoints.current.back().cloned() else { return self.clear() };
        self.restore(&checkpoint);
        self.steps.truncate(checkpoint.at);
        Ok(())
    }

    /// Processes `steps`, each in its phase. If the GPU is lost, the CPU replays all steps and continues; if the KV
    /// cache's type is too narrow, a wider one replaces it.
    fn read(&mut self, steps: &[Step], watch: &Watch<'_>) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        self.session.check_fits(steps.len())?;
        let mut done = 0;
        for pass in passes(steps) {
            match self.read_pass(pass, done + pass.len() == steps.len(), watch.cancel) {
                Ok(()) => {}
                Err(Error::Cancelled) => return self.cancelled(done),
                Err(lost) if self.session.can_fall_back(&lost) => {
                    let all = [&self.steps, &steps[done..]].concat();
                    self.checkpoints.drop_all(); // they are in GPU memory
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

    /// Handles a cancellation after `done` tokens: the session has processed those, and nothing of the cancelled pass.
    fn cancelled(&mut self, done: usize) -> Result<()> {
        if done > 0 {
            match self.session.last_logits().map(<[f32]>::to_vec) {
                Ok(logits) => self.logits = logits,
                Err(e) => return self.recover(e),
            }
        }
        Err(Error::Cancelled)
    }

    /// Processes `pass` completely or not at all, so that the steps match the session's state; logits are computed for
    /// the last one only.
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

    /// Drops the steps and their checkpoints; stashed branches are kept.
    pub fn clear(&mut self) -> Result<()> {
        self.session.clear()?;
        self.steps.clear();
        self.logits.clear();
        self.checkpoints.current.clear();
        Ok(())
    }

    /// Stashes a copy of the current branch as `name`.
    pub fn stash(&mut self, name: &str) -> Result<()> {
        let end = if self.steps.is_empty() { None } else { Some(self.make_checkpoint(true)?) };
        self.checkpoints.stash(name, &self.steps, end);
        Ok(())
    }

    /// Switches to the branch stashed as `name`, if its end is in memory, and drops the current one.
    pub fn unstash(&mut self, name: &str) {
        if let Some(Stash { steps, end: Some(end), checkpoints }) = self.checkpoints.stashes.remove(name) {
            self.restore(&end);
            (self.steps, self.checkpoints.current) = (steps, checkpoints);
        }
    }
}

impl TokenModel for Timeline<'_> {
    /// Accepts an empty prompt once tokens were processed: the logits are known.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        let steps: Vec<Step> = prefilled(ids).collect();
        self.read(&steps, &Watch { cancel, progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.read(&[decoded(id)], &Watch { cancel: &AtomicBool::new(false), progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn max_guesses(&self) -> usize {
        self.session.max_guesses()
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
            // Without drafts the token may succeed, or a fallback is needed.
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
