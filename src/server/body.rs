//! Bodies of requests: read within bounds, and taken apart where that holds nobody up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::BodyExt;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::spawn_blocking,
    time::{timeout, timeout_at},
};

use super::{
    Server, bounds,
    error::{ApiError, Result},
    fields::Fields,
    room::Room,
};

/// Reads the body of `request`, and returns what `work` makes of its fields on a thread that may take its time.
pub async fn prepare<T: Send + 'static>(
    server: &Arc<Server>,
    request: Request,
    work: impl FnOnce(&Arc<Server>, Fields) -> Result<T> + Send + 'static,
) -> Result<T> {
    if server.draining.load(Ordering::Relaxed) {
        return Err(ApiError::draining());
    }
    let (body, room) = read(&server.room, request).await?;
    let turn = server.room.preparing.clone().acquire_owned().await.map_err(|_| ApiError::draining())?;
    let server = server.clone();
    let done = spawn_blocking(move || {
        let _held = (room, turn);
        let fields = Fields::parse(&body)?;
        drop(body);
        work(&server, fields)
    });
    done.await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be worked on: this is a fault here",
        ))
    })
}

/// Reads a body of no more than [`bounds::BODY_BYTES`].
async fn read(room: &Room, request: Request) -> Result<(Vec<u8>, OwnedSemaphorePermit)> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let length: usize = length.unwrap_or(bounds::BODY_BYTES);
    let mut body = request.into_body();
    if length > bounds::BODY_BYTES {
        return Err(too_large(body).await);
    }
    let kib = u32::try_from(length.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let room = timeout(bounds::BODY_TIME, room.bodies.clone().acquire_many_owned(kib)).await;
    let Ok(Ok(room)) = room else { return Err(ApiError::busy(Duration::from_secs(1))) };
    let until = tokio::time::Instant::now() + bounds::BODY_TIME;
    let mut bytes = Vec::new();
    loop {
        let frame = timeout_at(until, body.frame()).await.map_err(|_| {
            let message = format!("the body did not arrive within {} seconds", bounds::BODY_TIME.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        match frame {
            None => return Ok((bytes, room)),
            Some(Err(_)) => return Err(ApiError::bad("the body broke off")),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
        }
        if bytes.len() > bounds::BODY_BYTES {
            return Err(too_large(body).await);
        }
    }
}

/// Returns the error that a body is too large, when some of the rest has been thrown away: a client that is still writing
/// when the connection closes may never read why.
async fn too_large(mut body: Body) -> ApiError {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(bounds::LINGER, rest).await;
    let message = format!("the body is larger than {} MB, which is the limit", bounds::BODY_BYTES / crate::limits::MB);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
}
