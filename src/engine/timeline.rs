//! A session that knows what it has read, and by which rule: so it can go back, go another way, and be saved.
//!
//! Points to come back to are kept in memory within a budget. Where one is missing, the way to it is walked again, each
//! token by the rule by which it was read and together with the tokens that were read with it, so that the outcome is
//! the same to the last bit.

mod disk;

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Session, generate::Steps};
use crate::{
    Error, Result,
    forward::{CHUNK, Phase},
    state::Checkpoint,
};

pub use disk::SavedSteps;

/// A token that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its id.
    pub id: u32,
    /// How it was read.
    pub phase: Phase,
    /// Did a pass begin with it? Tokens of a prompt are read many at once.
    pub first: bool,
}

/// Steps of a prompt.
pub fn prefilled(ids: &[u32]) -> impl Iterator<Item = Step> {
    ids.iter().enumerate().map(|(i, &id)| Step { id, phase: Phase::Prefill, first: i % CHUNK == 0 })
}

/// The step that reads a generated token.
pub fn decoded(id: u32) -> Step {
    Step { id, phase: Phase::Decode, first: true }
}

/// The passes in which `steps` are read.
pub fn passes(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    steps.chunk_by(|_, next| !next.first)
}

/// How many steps two ways have in common at their beginning.
pub fn common_steps(a: &[Step], b: &[Step]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Who waits for a longer evaluation.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Ends it.
    pub cancel: &'a AtomicBool,
    /// Hears how many tokens of how many are read.
    pub progress: &'a dyn Fn(usize, usize),
}

/// A place on the way to come back to.
#[derive(Clone)]
struct Mark {
    /// Steps before it.
    at: usize,
    point: Rc<Checkpoint>,
    logits: Rc<[f32]>,
    /// Marks made later have a larger one; clones have the same.
    age: u64,
}

/// Another way, put aside.
struct Shelved {
    steps: Vec<Step>,
    /// Its end, whole, and the places on it; nothing once the budget needed the room.
    end: Option<Mark>,
    marks: Vec<Mark>,
}

/// A session and the way it came.
pub struct Timeline<'m> {
    session: Session<'m>,
    steps: Vec<Step>,
    /// Logits after the last step; empty before the first.
    logits: Vec<f32>,
    /// In the order of their places.
    marks: Vec<Mark>,
    shelf: BTreeMap<String, Shelved>,
    budget: usize,
    age: u64,
    /// Tokens read since the beginning, those read again included.
    evaluated: usize,
    taken_over: bool,
}

impl<'m> Timeline<'m> {
    /// Begins with an empty session; marks take `budget` bytes at most.
    pub fn new(session: Session<'m>, budget: usize) -> Self {
        Self {
            session,
            steps: Vec::new(),
            logits: Vec::new(),
            marks: Vec::new(),
            shelf: BTreeMap::new(),
            budget,
            age: 0,
            evaluated: 0,
            taken_over: false,
        }
    }

    /// The way so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The ids of the way so far.
    pub fn ids(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.id).collect()
    }

    /// The logits `[vocab]` after the last step; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The session.
    pub fn session(&mut self) -> &mut Session<'m> {
        &mut self.session
    }

    /// How many tokens were read since the beginning, those read again included.
    pub fn evaluated(&self) -> usize {
        self.evaluated
    }

    /// Why the CPU took over from a GPU, or a wider KV cache took the place of one, since this was last asked.
    pub fn taken_over(&mut self) -> Option<&Error> {
        let told = std::mem::take(&mut self.taken_over);
        self.session.fallback().filter(|_| told)
    }

    /// How many tokens of text fit.
    pub fn context(&self) -> usize {
        self.session.context()
    }

    /// Makes a place to come back to where the way ends now.
    pub fn mark(&mut self) -> Result<()> {
        if self.steps.is_empty() || self.marks.last().is_some_and(|mark| mark.at == self.steps.len()) {
            return Ok(());
        }
        let mark = self.make_mark(false)?;
        self.marks.push(mark);
        self.evict();
        Ok(())
    }

    fn make_mark(&mut self, whole: bool) -> Result<Mark> {
        self.age += 1;
        let point = Rc::new(self.session.checkpoint(whole)?);
        Ok(Mark { at: self.steps.len(), point, logits: self.logits.as_slice().into(), age: self.age })
    }

    /// Bytes that marks and shelved ways take, each mark counted once.
    pub fn mark_bytes(&self) -> usize {
        self.all_marks()
            .map(|m| (m.age, m.point.bytes() + size_of_val(&*m.logits)))
            .collect::<HashMap<_, _>>()
            .values()
            .sum()
    }

    fn all_marks(&self) -> impl Iterator<Item = &Mark> {
        self.marks.iter().chain(self.shelf.values().flat_map(|way| way.marks.iter().chain(&way.end)))
    }

    /// Lets go of the oldest marks until the rest is within the budget.
    fn evict(&mut self) {
        while self.mark_bytes() > self.budget {
            let Some(oldest) = self.all_marks().map(|mark| mark.age).min() else { return };
            self.marks.retain(|mark| mark.age != oldest);
            for way in self.shelf.values_mut() {
                way.marks.retain(|mark| mark.age != oldest);
                way.end = way.end.take().filter(|mark| mark.age != oldest);
            }
        }
    }

    /// Goes to where `target` ends: back to the last mark that both ways share, and on from there. Without a step to
    /// read it takes no evaluation. When it is cancelled, the way ends somewhere on `target`.
    pub fn go(&mut self, target: &[Step], watch: &Watch<'_>) -> Result<()> {
        let common = common_steps(&self.steps, target);
        // A pass that is longer on the other way is another pass.
        let ends_here = |at: usize| target.get(at).is_none_or(|next| next.first);
        if common < self.steps.len() || !ends_here(common) {
            self.marks.retain(|mark| mark.at <= common && ends_here(mark.at));
            match self.marks.last() {
                Some(mark) => {
                    self.session.restore(&mark.point);
                    self.logits = mark.logits.to_vec();
                    self.steps.truncate(mark.at);
                }
                None => self.clear()?,
            }
        }
        self.read(&target[self.steps.len()..], watch)
    }

    /// Reads `steps`, each by its rule. If the GPU is lost meanwhile, the CPU reads the whole way again and goes on; if the
    /// KV cache turns out too narrow, a wider one takes its place.
    fn read(&mut self, steps: &[Step], watch: &Watch<'_>) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        self.session.check_room(steps.len())?;
        let mut done = 0;
        for pass in passes(steps) {
            if watch.cancel.load(Ordering::Relaxed) {
                if done > 0 {
                    self.logits = self.session.last_logits()?.to_vec();
                }
                return Err(Error::Cancelled);
            }
            let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
            // A pass is read or not, whatever `cancel` says meanwhile: the way must be what the session has read. Logits
            // are those after the last.
            let last = done + pass.len() == steps.len();
            let logits = match (last, pass[0].phase) {
                (false, phase) => self.session.advance(&ids, phase).map(|()| Vec::new()),
                (true, Phase::Prefill) => self.session.prefill(&ids, &AtomicBool::new(false)).map(<[f32]>::to_vec),
                (true, Phase::Decode) => self.session.decode(pass[0].id).map(<[f32]>::to_vec),
            };
            match logits {
                Ok(logits) => self.logits = logits,
                Err(lost) if self.session.can_fall_back(&lost) => {
                    let way = [&self.steps, &steps[done..]].concat();
                    self.forget_marks(); // they are in its memory
                    self.session.fall_back(lost)?;
                    self.taken_over = true;
                    self.clear()?;
                    return self.read(&way, watch);
                }
                // What the session holds now is anybody's guess.
                Err(e) => return self.clear().and(Err(e)),
            }
            self.steps.extend(pass);
            self.evaluated += pass.len();
            done += pass.len();
            (watch.progress)(done, steps.len());
        }
        Ok(())
    }

    /// Forgets the way, and all marks on it; shelved ways stay.
    pub fn clear(&mut self) -> Result<()> {
        self.session.clear()?;
        self.steps.clear();
        self.logits.clear();
        self.marks.clear();
        Ok(())
    }

    /// Lets go of all marks; of shelved ways, the steps stay.
    fn forget_marks(&mut self) {
        self.marks.clear();
        for way in self.shelf.values_mut() {
            way.marks.clear();
            way.end = None;
        }
    }

    /// Puts a copy of the way aside as `name`, to go on with it later.
    pub fn shelve(&mut self, name: &str) -> Result<()> {
        let end = if self.steps.is_empty() { None } else { Some(self.make_mark(true)?) };
        let way = Shelved { steps: self.steps.clone(), end, marks: self.marks.clone() };
        self.shelf.insert(name.into(), way);
        self.evict();
        Ok(())
    }

    /// Takes the way that was put aside as `name`, if there is one with its end in memory. The present way is gone.
    pub fn unshelve(&mut self, name: &str) {
        if let Some(Shelved { steps, end: Some(end), marks }) = self.shelf.remove(name) {
            self.session.restore(&end.point);
            self.logits = end.logits.to_vec();
            (self.steps, self.marks) = (steps, marks);
        }
    }

    /// Forgets all ways that were put aside.
    pub fn clear_shelf(&mut self) {
        self.shelf.clear();
    }
}

impl Steps for Timeline<'_> {
    /// Nothing to read is fine once something was read: the logits are known.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        let steps: Vec<Step> = prefilled(ids).collect();
        self.read(&steps, &Watch { cancel, progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.read(&[decoded(id)], &Watch { cancel: &AtomicBool::new(false), progress: &|_, _| () })?;
        Ok(&self.logits)
    }

    fn tokens(&self) -> usize {
        self.steps.len()
    }

    fn context(&self) -> usize {
        self.session.context()
    }
}
