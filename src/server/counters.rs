//! Request and connection counters.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::AtomicUsize},
};

use axum::http::StatusCode;

/// Counters of the server; the scheduler has its own.
#[derive(Default)]
pub struct Counters {
    /// Requests by route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Open connections.
    pub connections: AtomicUsize,
}

impl Counters {
    /// Counts a request.
    pub fn count(&self, route: &'static str, status: StatusCode) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status.as_u16())).or_default() += 1;
    }

    /// Returns the number of requests by route and status.
    pub fn requests(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
