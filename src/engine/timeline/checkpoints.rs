//! The checkpoints of a timeline and its stashed branches, within a memory budget.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use super::Step;
use crate::state;

/// A checkpoint of the state.
#[derive(Clone)]
pub struct Checkpoint {
    /// Number of steps before it.
    pub at: usize,
    /// Increases with creation time; clones share it.
    age: u64,
    content: Rc<Content>,
}

/// Shared by a checkpoint and its clones.
struct Content {
    state: state::Checkpoint,
    logits: Box<[f32]>,
    /// Total bytes of all checkpoints, including this one.
    total: Rc<Cell<usize>>,
}

impl Content {
    fn bytes(&self) -> usize {
        self.state.bytes() + size_of_val(&*self.logits)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes());
    }
}

impl Checkpoint {
    /// Returns the state.
    pub fn state(&self) -> &state::Checkpoint {
        &self.content.state
    }

    /// Returns the logits after the last step before it.
    pub fn logits(&self) -> &[f32] {
        &self.content.logits
    }
}

/// A stashed branch.
pub struct Stash {
    pub steps: Vec<Step>,
    /// The state at its end, with global layers; `None` once it was dropped for the budget.
    pub end: Option<Checkpoint>,
    pub checkpoints: VecDeque<Checkpoint>,
}

/// All checkpoints.
pub struct Checkpoints {
    /// Those of the current branch, in the order of steps and of age.
    pub current: VecDeque<Checkpoint>,
    pub stashes: BTreeMap<String, Stash>,
    budget: usize,
    age: u64,
    total: Rc<Cell<usize>>,
}

impl Checkpoints {
    /// Returns an empty set with a budget of `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { current: VecDeque::new(), stashes: BTreeMap::new(), budget, age: 0, total: Rc::default() }
    }

    /// Returns the budget in bytes.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Returns a checkpoint after `at` steps.
    pub fn make(&mut self, at: usize, state: state::Checkpoint, logits: &[f32]) -> Checkpoint {
        self.age += 1;
        let content = Content { state, logits: logits.into(), total: self.total.clone() };
        self.total.set(self.total.get() + content.bytes());
        Checkpoint { at, age: self.age, content: content.into() }
    }

    /// Appends a checkpoint to the current branch.
    pub fn push(&mut self, checkpoint: Checkpoint) {
        self.current.push_back(checkpoint);
        self.evict();
    }

    /// Stashes a branch as `name`.
    pub fn stash(&mut self, name: &str, steps: &[Step], end: Option<Checkpoint>) {
        let stash = Stash { steps: steps.into(), end, checkpoints: self.current.clone() };
        self.stashes.insert(name.into(), stash);
        self.evict();
    }

    /// Drops all checkpoints; stashed branches keep their steps.
    pub fn drop_all(&mut self) {
        self.current.clear();
        for stash in self.stashes.values_mut() {
            stash.checkpoints.clear();
            stash.end = None;
        }
    }

    /// Returns their size in bytes, clones counted once.
    pub fn bytes(&self) -> usize {
        self.total.get()
    }

    /// Drops the oldest checkpoints until the rest fits the budget.
    fn evict(&mut self) {
        while self.bytes() > self.budget {
            let stashed =
                self.stashes.values().flat_map(|stash| stash.checkpoints.front().into_iter().chain(&stash.end));
            let Some(oldest) = self.current.front().into_iter().chain(stashed).map(|c| c.age).min() else { return };
            drop_front(&mut self.current, oldest);
            for stash in self.stashes.values_mut() {
                drop_front(&mut stash.checkpoints, oldest);
                stash.end.take_if(|checkpoint| checkpoint.age == oldest);
            }
        }
    }
}

/// Drops the first of `checkpoints` if it is of this age.
fn drop_front(checkpoints: &mut VecDeque<Checkpoint>, age: u64) {
    if checkpoints.front().is_some_and(|checkpoint| checkpoint.age == age) {
        checkpoints.pop_front();
    }
}
