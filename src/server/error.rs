//! Error responses in the format of OpenAI's API.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::Error;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    message: String,
    /// The field that caused the error.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds until a retry may succeed.
    retry_after: Option<u32>,
}

/// The result of a route.
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// Returns an error with this status; `message` is a sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// Returns the error for an invalid request.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Returns the error for an invalid field; `problem` follows the field's name.
    pub fn field(path: &str, problem: impl std::fmt::Display) -> Self {
        Self { param: Some(path.into()), ..Self::bad(format!("`{path}`: {problem}")) }.with_code("invalid_value")
    }

    /// Returns the error for a required field that is absent.
    pub fn missing(path: &str) -> Self {
        Self { param: Some(path.into()), ..Self::bad(format!("`{path}` is required")) }.with_code("invalid_value")
    }

    /// Returns the error for a field that is not supported.
    pub fn unsupported(path: &str, problem: impl std::fmt::Display) -> Self {
        Self::field(path, problem).with_code("unsupported_parameter")
    }

    /// Returns the error for exceeding the context size.
    pub fn context_length(tokens: usize, context: usize) -> Self {
        let message = format!(
            "the prompt has {tokens} tokens, but the context holds {context} tokens, one of them for the answer; shorten \
             the prompt"
        );
        Self::bad(message).with_code("context_length_exceeded")
    }

    /// Returns the error for a full queue, with the estimated time to wait.
    pub fn busy(after: Duration) -> Self {
        let message = "the server is busy and its queue is full; try again later";
        let seconds = after.as_secs_f64().ceil().clamp(1.0, 600.0) as u32;
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }.with_code("queue_full")
    }

    /// Returns the error for a server that is shutting down.
    pub fn draining() -> Self {
        let message = "the server is shutting down and accepts no new requests";
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }.with_code("shutting_down")
    }

    /// Sets the machine-readable code.
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Attributes the error to the field `path`, unless it names one.
    pub fn of_field(self, path: &str) -> Self {
        if self.param.is_some() || self.status != StatusCode::BAD_REQUEST {
            return self;
        }
        Self { param: Some(path.into()), message: format!("`{path}`: {}", self.message), ..self }
    }

    /// Returns the error type for the status.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Returns the body, also used as the last event of a failed stream.
    pub fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::ContextFull { needed, free, context } => Self::context_length(needed + context - free, context),
            Error::Request(_) | Error::TokenOutOfRange { .. } | Error::Template { .. } | Error::Constraint { .. } => {
                Self::bad(message)
            }
            Error::Cancelled => Self::draining(),
            Error::Busy(_) => Self { retry_after: Some(2), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
                .with_code("compiler_busy"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_compiler_is_status_429_with_a_time_to_retry() {
        let error = ApiError::from(Error::Busy("too many constraints are being compiled; try again later"));
        let error = error.of_field("response_format");
        assert_eq!(
            error.body()["error"],
            json!({
                "message": "too many constraints are being compiled; try again later",
                "type": "rate_limit_error",
                "param": null,
                "code": "compiler_busy",
            })
        );
        let response = error.into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (429, &HeaderValue::from(2))
        );
    }
}
