//! Several texts at once: one thread owns the model, and reads and writes all of them in common passes.

mod job;

pub use job::{Cached, Event, Events, Job, Logprobs, Metrics, Refused, Taken, Usage};
