//! Server-sent events.

use std::convert::Infallible;

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::bounds;

/// An event of a stream; errors are sent as events too.
pub type Sent = Result<Event, Infallible>;

/// Returns a stream of the events `first`, followed by the batches of `rest`.
pub fn stream_of(first: Vec<Sent>, rest: impl Stream<Item = Vec<Sent>> + Send + 'static) -> impl IntoResponse {
    let events = stream::iter(first).chain(rest.flat_map(stream::iter));
    // Prevents proxies from buffering the stream.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    ([unbuffered, fresh], Sse::new(events).keep_alive(KeepAlive::new().interval(bounds::PING).text("ping")))
}

/// Returns an event with a JSON object.
pub fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}

/// Returns the event that ends a stream.
pub fn done() -> Event {
    Event::default().data("[DONE]")
}
