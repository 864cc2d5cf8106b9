//! What rendering may cost. Whatever is made, looked at or visited is paid for before it is made, and nothing is given
//! back: the budget bounds time and memory at once, and nothing can be made that was not paid for.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::Failure;
use crate::limits;

/// What a step costs; a byte that is looked at costs 1, one that is made 2.
pub const STEP: usize = 64;
/// What an item of a list, an entry of a dict, a scope or an object costs, and to visit one.
pub const ITEM: usize = 64;

/// What a piece of a text costs beside its bytes.
const TEXT_OVERHEAD: usize = 8;

/// How much is spent between two looks at what cancels a rendering: a power of two, less than a millisecond's work.
const LOOK: usize = 1024 * STEP;

/// The budget of one rendering.
pub struct Meter {
    left: Cell<usize>,
    cancel: Option<Arc<AtomicBool>>,
}

impl Meter {
    /// Returns a budget of so many steps.
    pub fn new(steps: u64) -> Self {
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        Self { left: Cell::new(steps.saturating_mul(STEP)), cancel: None }
    }

    /// The same; once `cancel` is set, nothing more can be paid for.
    pub fn cancelled_by(self, cancel: Option<Arc<AtomicBool>>) -> Self {
        Self { cancel, ..self }
    }

    /// Takes `cost` out of the budget.
    pub fn charge(&self, cost: usize) -> Result<(), Failure> {
        let before = self.left.get();
        match before.checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                let looks = (before ^ left) >= LOOK;
                if looks && self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Failure::cancelled());
                }
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Failure::new(format!("it takes more than {} steps", limits::TEMPLATE_STEPS)))
            }
        }
    }

    /// The same for `count` things that cost `each`.
    pub fn charge_for(&self, count: usize, each: usize) -> Result<(), Failure> {
        self.charge(count.saturating_mul(each))
    }
}

/// A text that is being made, and paid for as it grows.
pub struct Writer<'m> {
    text: String,
    meter: &'m Meter,
}

impl<'m> Writer<'m> {
    /// Returns an empty text.
    pub fn new(meter: &'m Meter) -> Self {
        Self { text: String::new(), meter }
    }

    /// Returns who pays.
    pub fn meter(&self) -> &'m Meter {
        self.meter
    }

    /// Appends `text`.
    pub fn push(&mut self, text: &str) -> Result<(), Failure> {
        self.meter.charge(TEXT_OVERHEAD + 2 * text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Appends a character.
    pub fn push_char(&mut self, c: char) -> Result<(), Failure> {
        self.meter.charge(TEXT_OVERHEAD)?;
        self.text.push(c);
        Ok(())
    }

    /// Appends `text` so many times.
    pub fn repeat(&mut self, text: &str, count: usize) -> Result<(), Failure> {
        self.meter.charge_for(count, 2 * text.len() + 1)?;
        self.text.extend(std::iter::repeat_n(text, count));
        Ok(())
    }

    /// Returns the text.
    pub fn finish(self) -> String {
        self.text
    }
}
