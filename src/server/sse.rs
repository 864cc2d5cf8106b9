//! Server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

/// An event of a stream; errors are sent as events too.
pub type StreamEvent = Result<Event, Infallible>;

/// Returns a stream of the events `first`, followed by the batches of `rest`; after `silence` without an event comes a ping.
pub fn stream_of(
    first: Vec<StreamEvent>,
    rest: impl Stream<Item = Vec<StreamEvent>> + Send + 'static,
    silence: Duration,
) -> impl IntoResponse {
    let events = stream::iter(first).chain(rest.flat_map(stream::iter));
    // Prevents proxies from buffering the stream.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    ([unbuffered, fresh], Sse::new(events).keep_alive(KeepAlive::new().interval(silence).text("ping")))
}

/// Returns an event with a JSON object.
pub fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}

/// Returns the event that ends a stream.
pub fn done() -> Event {
    Event::default().data("[DONE]")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_silent_stream_is_kept_alive_by_pings() {
        Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let first = vec![Ok(event(&1.into()))];
            let answer = stream_of(first, stream::pending(), Duration::from_millis(1)).into_response();
            let mut body = answer.into_body();
            let mut received = String::new();
            while received.lines().count() < 6 {
                let frame = body.frame().await.unwrap().unwrap();
                received += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
            }
            assert_eq!(received, "data: 1\n\n: ping\n\n: ping\n\n");
        });
    }
}
