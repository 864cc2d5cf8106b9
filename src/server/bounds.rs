//! What a client may take of the server's memory and time.

use std::time::Duration;

use crate::limits::MB;

/// Connections at once; one more is told so and closed.
pub const CONNECTIONS: usize = 256;
/// Bytes of a request's head.
pub const HEAD_BYTES: usize = 32_000;
/// Header fields of a request.
pub const HEADERS: usize = 64;
/// Time for a request's head to arrive, and for the next one on a connection that is kept.
pub const HEAD_TIME: Duration = Duration::from_secs(15);
/// Bytes of a body: some times as many as the largest context holds.
pub const BODY_BYTES: usize = 4 * MB;
/// Bytes of all bodies that are being read and taken apart at once.
pub const ALL_BODY_BYTES: usize = 64 * MB;
/// Time for a body to arrive.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// Time in which more of a body than is read is thrown away, so that a client that only writes gets to read the error.
pub const LINGER: Duration = Duration::from_secs(2);
/// Time in which a client has to read something of an answer.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// Time without an event after which a stream shows that it is alive.
pub const PING: Duration = Duration::from_secs(10);
/// Requests that are taken apart at once: templates and tokens are work for a core.
pub const PREPARING: usize = 2;
/// Answers to one prompt.
pub const CHOICES: u64 = 16;
/// Prompts of one request.
pub const PROMPTS: usize = 2048;
/// Stop strings of a request.
pub const STOPS: usize = 16;
/// Most likely tokens beside each token.
pub const TOP_LOGPROBS: u64 = 20;
/// Messages of a conversation.
pub const MESSAGES: usize = 4096;
