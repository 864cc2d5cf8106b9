//! Server-sent events: answers as they come.

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

/// An event of a stream, which never fails: errors are events too.
pub type Sent = Result<Event, Infallible>;

/// Returns an answer of the events `first`, and then those of `rest`, some at a time.
pub fn stream_of(first: Vec<Sent>, rest: impl Stream<Item = Vec<Sent>> + Send + 'static) -> impl IntoResponse {
    let events = stream::iter(first).chain(rest.flat_map(stream::iter));
    // A proxy in between is not to collect what comes.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    ([unbuffered, fresh], Sse::new(events).keep_alive(KeepAlive::new().interval(bounds::PING).text("ping")))
}

/// Returns an event with this object.
pub fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}

/// Returns the event that ends a stream.
pub fn done() -> Event {
    Event::default().data("[DONE]")
}
