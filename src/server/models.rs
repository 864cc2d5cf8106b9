//! `GET /v1/models`: the served model.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{
    Server,
    error::{ApiError, Result},
};

/// Returns the list of models.
pub async fn list(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [object(&server)] }))
}

/// Returns a model by its id or an alias.
pub async fn one(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Result<Json<Value>> {
    server.check_model(Some(name))?;
    Ok(Json(object(&server)))
}

fn object(server: &Server) -> Value {
    let card = &server.card;
    json!({
        "id": server.model_id(),
        "object": "model",
        "created": card.created,
        "owned_by": "hymba",
        "aliases": card.names[1..],
        "meta": {
            "n_ctx": server.context,
            "n_ctx_train": card.trained_context,
            "n_vocab": server.vocab,
            "size": card.bytes,
        },
    })
}

impl Server {
    /// Rejects the names of other models.
    pub fn check_model(&self, name: Option<String>) -> Result<()> {
        let Some(name) = name.filter(|name| !self.card.is(name)) else { return Ok(()) };
        let aliases = match self.card.names.get(1..).unwrap_or_default() {
            [] => String::new(),
            [alias] => format!(" (alias: {alias})"),
            aliases => format!(" (aliases: {})", aliases.join(", ")),
        };
        let message = format!("unknown model `{name}`; available: {}{aliases}", self.model_id());
        Err(ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found"))
    }

    /// Returns the model's id.
    pub fn model_id(&self) -> &str {
        self.card.names.first().map_or("hymba", String::as_str)
    }
}
