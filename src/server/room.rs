//! Room for what requests bring.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::bounds;

/// Room for what requests bring.
pub struct Room {
    /// KiB of bodies.
    pub bodies: Arc<Semaphore>,
    /// Cores that take requests apart.
    pub preparing: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        let bodies = Arc::new(Semaphore::new(bounds::ALL_BODY_BYTES >> 10));
        Self { bodies, preparing: Arc::new(Semaphore::new(bounds::PREPARING)) }
    }
}
