//! A stopwatch for operations.

use std::time::Duration;

use super::Operation;

/// Time by [`Operation`], each without the time that the calling thread waited for others.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// In the order of [`Operation::ALL`].
    pub operations: [Duration; Operation::ALL.len()],
    /// How long the calling thread waited for the others.
    pub waiting: Duration,
}

impl Profile {
    /// Adds an operation that took `elapsed`, of which the calling thread `waited` for others.
    pub(super) fn add(&mut self, operation: Operation, elapsed: Duration, waited: Duration) {
        self.operations[operation as usize] += elapsed.saturating_sub(waited);
        self.waiting += waited;
    }
}
