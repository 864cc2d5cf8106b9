//! The checkpoints of a timeline and of its stashed branches, within a budget of memory.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use super::Step;
use crate::state;

/// A state to go back to.
#[derive(Clone)]
pub struct Checkpoint {
    /// Steps before it.
    pub at: usize,
    pub state: Rc<state::Checkpoint>,
    pub logits: Rc<[f32]>,
    /// Those made later have a larger one; clones have the same.
    age: u64,
}

/// A branch to go on with later.
pub struct Stash {
    pub steps: Vec<Step>,
    /// The state at its end, with the rows of global layers; `None` once the budget needed the room.
    pub end: Option<Checkpoint>,
    pub checkpoints: Vec<Checkpoint>,
}

/// All checkpoints.
pub struct Checkpoints {
    /// Those of the present branch, in the order of their steps.
    pub current: Vec<Checkpoint>,
    pub stashes: BTreeMap<String, Stash>,
    budget: usize,
    age: u64,
}

impl Checkpoints {
    /// Returns none yet; they will take `budget` bytes at most.
    pub fn new(budget: usize) -> Self {
        Self { current: Vec::new(), stashes: BTreeMap::new(), budget, age: 0 }
    }

    /// Returns a checkpoint after `at` steps.
    pub fn make(&mut self, at: usize, state: state::Checkpoint, logits: &[f32]) -> Checkpoint {
        self.age += 1;
        Checkpoint { at, state: state.into(), logits: logits.into(), age: self.age }
    }

    /// Adds the last checkpoint of the present branch.
    pub fn push(&mut self, checkpoint: Checkpoint) {
        self.current.push(checkpoint);
        self.evict();
    }

    /// Stashes a branch as `name`.
    pub fn stash(&mut self, name: &str, steps: &[Step], end: Option<Checkpoint>) {
        let stash = Stash { steps: steps.into(), end, checkpoints: self.current.clone() };
        self.stashes.insert(name.into(), stash);
        self.evict();
    }

    /// Drops all checkpoints; of stashed branches, the steps stay.
    pub fn drop_all(&mut self) {
        self.drop_if(|_| true);
    }

    /// Returns how many bytes they take, each counted once.
    pub fn bytes(&self) -> usize {
        let bytes = |c: &Checkpoint| (c.age, c.state.bytes() + size_of_val(&*c.logits));
        self.all().map(bytes).collect::<HashMap<_, _>>().values().sum()
    }

    fn all(&self) -> impl Iterator<Item = &Checkpoint> {
        self.current.iter().chain(self.stashes.values().flat_map(|stash| stash.checkpoints.iter().chain(&stash.end)))
    }

    /// Drops the oldest until the rest is within the budget.
    fn evict(&mut self) {
        while self.bytes() > self.budget {
            let Some(oldest) = self.all().map(|checkpoint| checkpoint.age).min() else { return };
            self.drop_if(|checkpoint| checkpoint.age == oldest);
        }
    }

    fn drop_if(&mut self, gone: impl Fn(&Checkpoint) -> bool) {
        self.current.retain(|checkpoint| !gone(checkpoint));
        for stash in self.stashes.values_mut() {
            stash.checkpoints.retain(|checkpoint| !gone(checkpoint));
            stash.end.take_if(|checkpoint| gone(checkpoint));
        }
    }
}
