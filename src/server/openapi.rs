//! `GET /openapi.json`: the OpenAPI description of the routes.

use axum::Json;
use serde_json::Value;

use super::error::{ApiError, Result};

const DOCUMENT: &str = include_str!("openapi.json");

/// Returns the description with the version of this program.
pub async fn document() -> Result<Json<Value>> {
    let broken = |e| ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, format!("openapi.json: {e}"));
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(broken)?;
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    Ok(Json(document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::routes::PATHS;

    #[test]
    fn every_path_is_described() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let described: Vec<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, PATHS[..PATHS.len() - 1]);
    }

    #[test]
    fn every_reference_resolves() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let references = DOCUMENT.split("\"$ref\": \"#").skip(1).map(|rest| rest.split('"').next().unwrap());
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
}
