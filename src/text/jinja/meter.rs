//! The cost budget of rendering. Everything that is created, compared or visited is charged first, and nothing is
//! refunded, so the budget bounds both time and memory.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::Failure;
use crate::limits;

/// Cost of a step. Reading a byte costs 1, writing one costs 2.
pub const STEP: usize = 64;
/// Cost of an item of a list, an entry of a dict, a scope or an object, and of visiting one.
pub const ITEM: usize = 64;

/// Cost of a string beyond its bytes.
const TEXT_OVERHEAD: usize = 8;

/// Cost between two checks for cancellation: a power of two, less than a millisecond of work.
const CHECK_INTERVAL: usize = 1024 * STEP;

/// The budget of one rendering.
pub struct Meter {
    left: Cell<usize>,
    cancel: Option<Arc<AtomicBool>>,
}

impl Meter {
    /// Returns a budget of `steps` steps.
    pub fn new(steps: u64) -> Self {
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        Self { left: Cell::new(steps.saturating_mul(STEP)), cancel: None }
    }

    /// Adds a cancellation flag; once it is set, every charge fails.
    pub fn cancelled_by(self, cancel: Option<Arc<AtomicBool>>) -> Self {
        Self { cancel, ..self }
    }

    /// Charges `cost`.
    pub fn charge(&self, cost: usize) -> Result<(), Failure> {
        let before = self.left.get();
        match before.checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                let is_check_due = (before ^ left) >= CHECK_INTERVAL;
                if is_check_due && self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
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

    /// Charges `each` for each of `count` things.
    pub fn charge_for(&self, count: usize, each: usize) -> Result<(), Failure> {
        self.charge(count.saturating_mul(each))
    }
}

/// A string under construction, charged as it grows.
pub struct Writer<'m> {
    text: String,
    meter: &'m Meter,
}

impl<'m> Writer<'m> {
    /// Returns a writer with an empty string.
    pub fn new(meter: &'m Meter) -> Self {
        Self { text: String::new(), meter }
    }

    /// Returns the meter that is charged.
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

    /// Appends `text` `count` times.
    pub fn repeat(&mut self, text: &str, count: usize) -> Result<(), Failure> {
        self.meter.charge_for(count, 2 * text.len() + 1)?;
        self.text.extend(std::iter::repeat_n(text, count));
        Ok(())
    }

    /// Returns the finished string.
    pub fn finish(self) -> String {
        self.text
    }
}
