//! The routes, and what applies to all requests.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{Server, chat, completions, error::ApiError, metrics, models, openapi, tokens};

/// The paths, for metrics.
pub const PATHS: [&str; 11] = [
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/health",
    "/metrics",
    "/openapi.json",
    "other",
];

/// Returns the router of `server`.
pub fn router(server: &Arc<Server>) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/health", get(metrics::health))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(server.clone(), guard))
        .with_state(server.clone())
}

/// Checks access and counts requests.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let route = route(parts.uri.path());
    let request_headers = parts.headers.clone();
    let is_preflight = parts.method == Method::OPTIONS;
    let checked = server.access.check(&parts, route != "/health" && !is_preflight);
    let mut answer = match checked {
        Err(error) => error.into_response(),
        Ok(_) if is_preflight => StatusCode::NO_CONTENT.into_response(),
        Ok(caller) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
    };
    server.access.add_cors(&request_headers, answer.headers_mut());
    server.counters.count(route, answer.status());
    answer
}

/// Returns the entry of [`PATHS`] for a path.
fn route(path: &str) -> &'static str {
    if path.starts_with("/v1/models/") {
        return "/v1/models/{model}";
    }
    PATHS.into_iter().find(|known| *known == path).unwrap_or("other")
}

async fn no_such_path(request: Request) -> ApiError {
    let path = request.uri().path();
    let bare = path.trim_end_matches('/');
    let near = PATHS.into_iter().find(|&known| known == bare || known.strip_prefix("/v1") == Some(bare));
    let message = match near {
        Some(known) => format!("unknown path {path}; did you mean {known}?"),
        None => format!("unknown path {path}; see /openapi.json for the routes"),
    };
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_path")
}

async fn no_such_method(request: Request) -> ApiError {
    let message = format!("method {} is not allowed for {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}
