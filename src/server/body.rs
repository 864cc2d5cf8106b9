//! Request bodies, read within limits and parsed off the async threads.

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
    permits::Permits,
};

/// Reads the body of `request` and runs `work` on its fields on a blocking thread.
pub async fn prepare<T: Send + 'static>(
    server: &Arc<Server>,
    request: Request,
    work: impl FnOnce(&Arc<Server>, Fields) -> Result<T> + Send + 'static,
) -> Result<T> {
    if server.draining.load(Ordering::Relaxed) {
        return Err(ApiError::draining());
    }
    let (body, permits) = read(&server.permits, request).await?;
    let turn = server.permits.preparing.clone().acquire_owned().await.map_err(|_| ApiError::draining())?;
    let server = server.clone();
    let done = spawn_blocking(move || {
        let _held = (permits, turn);
        let fields = Fields::parse(&body)?;
        drop(body);
        work(&server, fields)
    });
    done.await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be processed because of an internal error",
        ))
    })
}

/// Reads a body of at most [`bounds::BODY_BYTES`].
async fn read(permits: &Permits, request: Request) -> Result<(Vec<u8>, OwnedSemaphorePermit)> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let length: usize = length.unwrap_or(bounds::BODY_BYTES);
    let mut body = request.into_body();
    if length > bounds::BODY_BYTES {
        return Err(too_large(body).await);
    }
    let kib = u32::try_from(length.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let permits = timeout(bounds::BODY_TIME, permits.bodies.clone().acquire_many_owned(kib)).await;
    let Ok(Ok(permits)) = permits else { return Err(ApiError::busy(Duration::from_secs(1))) };
    let until = tokio::time::Instant::now() + bounds::BODY_TIME;
    let mut bytes = Vec::new();
    loop {
        let frame = timeout_at(until, body.frame()).await.map_err(|_| {
            let message = format!("the body did not arrive within {} seconds", bounds::BODY_TIME.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        match frame {
            None => return Ok((bytes, permits)),
            Some(Err(_)) => return Err(ApiError::bad("the body is incomplete")),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
        }
        if bytes.len() > bounds::BODY_BYTES {
            return Err(too_large(body).await);
        }
    }
}

/// Returns the error for a body that is too large, after discarding part of the rest: a client that is still writing
/// when the connection closes may never read the error.
async fn too_large(mut body: Body) -> ApiError {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(bounds::LINGER, rest).await;
    let message = format!("the body is larger than the limit of {} MB", bounds::BODY_BYTES / crate::limits::MB);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
}
