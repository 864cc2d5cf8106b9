//! Limits on the memory and time that clients can use.

use std::time::Duration;

use crate::limits::MB;

/// Maximum number of connections; further ones are rejected with an error.
pub const CONNECTIONS: usize = 256;
/// Maximum size of a request head.
pub const HEAD_BYTES: usize = 32_000;
/// Maximum number of header fields.
pub const HEADERS: usize = 64;
/// Timeout for a request head, and for the next request on a kept-alive connection.
pub const HEAD_TIME: Duration = Duration::from_secs(15);
/// Maximum size of a body: several times the text that fits into the largest context.
pub const BODY_BYTES: usize = 4 * MB;
/// Maximum size of all bodies being read and parsed.
pub const ALL_BODY_BYTES: usize = 64 * MB;
/// Timeout for a body.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// Time during which the rest of a rejected body is discarded, so that a client that only writes can read the error.
pub const LINGER: Duration = Duration::from_secs(2);
/// Timeout for a client to read part of an answer.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// Time without an event after which a stream sends a keep-alive comment.
pub const PING: Duration = Duration::from_secs(10);
/// Maximum number of requests parsed at once: templates and tokenization are CPU work.
pub const PREPARING: usize = 2;
/// Maximum number of answers per prompt.
pub const CHOICES: u64 = 16;
/// Maximum number of prompts per request.
pub const PROMPTS: usize = 2048;
/// Maximum number of stop strings per request.
pub const STOPS: usize = 16;
/// Maximum number of alternatives per token.
pub const TOP_LOGPROBS: u64 = 20;
/// Maximum number of messages per conversation.
pub const MESSAGES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_docs_has_these_numbers() {
        let (plain, seconds) = (|n: usize| n.to_string(), |time: Duration| format!("{} s", time.as_secs()));
        let grouped = |n: usize| format!("{},{:03}", n / 1000, n % 1000);
        let section = include_str!("../../docs/server.md").split("## Limits").nth(1).unwrap();
        for (label, limit) in [
            ("connections", plain(CONNECTIONS)),
            ("request head", format!("{} KB", HEAD_BYTES / 1000)),
            ("header fields", plain(HEADERS)),
            ("time to receive a head, also on an idle connection", seconds(HEAD_TIME)),
            ("body", format!("{} MB", BODY_BYTES / MB)),
            ("time to receive a body", seconds(BODY_TIME)),
            ("total size of all bodies", format!("{} MB", ALL_BODY_BYTES / MB)),
            ("requests parsed concurrently", plain(PREPARING)),
            ("answers to a prompt (`n`)", plain(CHOICES as usize)),
            ("sequences of a request: prompts times `n`", grouped(PROMPTS)),
            ("messages of a chat", grouped(MESSAGES)),
            ("stop strings", plain(STOPS)),
            ("alternatives per token (`logprobs`, `top_logprobs`)", plain(TOP_LOGPROBS as usize)),
            ("time without reading an answer", seconds(WRITE_TIME)),
        ] {
            assert!(section.contains(&format!("\n| {label} | {limit} | ")), "{label}: {limit}");
        }
        assert!(include_str!("../../docs/server.md").contains(&format!("every {} seconds", PING.as_secs())));
    }
}
