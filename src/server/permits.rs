//! Semaphores that bound the memory and work of requests.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::bounds;

/// Semaphores that bound the memory and work of requests.
pub struct Permits {
    /// Total size of bodies, in KiB.
    pub bodies: Arc<Semaphore>,
    /// Number of requests being parsed.
    pub preparing: Arc<Semaphore>,
}

impl Default for Permits {
    fn default() -> Self {
        let bodies = Arc::new(Semaphore::new(bounds::ALL_BODY_BYTES >> 10));
        Self { bodies, preparing: Arc::new(Semaphore::new(bounds::PREPARING)) }
    }
}
