//! The routes `/tokenize`, `/detokenize` and `/apply-template`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde_json::{Value, json};

use super::{
    Server, body,
    choice::token_text,
    completions::ids,
    error::{ApiError, Result},
    messages, shape,
};

/// `POST /tokenize`: returns the token ids of `content`; `add_special` adds the BOS token, `with_pieces` adds the text
/// of each token.
pub async fn tokenize(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Value>> {
    let answer = body::prepare(&server, request, |server, mut fields| {
        let content = fields.text("content")?.ok_or_else(|| ApiError::missing("content"))?;
        let with_bos = fields.flag("add_special")?.unwrap_or(false);
        let with_pieces = fields.flag("with_pieces")?.unwrap_or(false);
        fields.finish()?;
        let ids = server.tokenizer.encode(&content, with_bos)?;
        if !with_pieces {
            return Ok(json!({ "tokens": ids }));
        }
        let tokenizer = &server.tokenizer;
        let pieces = ids.iter().map(|&id| json!({ "id": id, "piece": token_text(tokenizer, id) }));
        Ok(json!({ "tokens": pieces.collect::<Vec<_>>() }))
    });
    Ok(Json(answer.await?))
}

/// `POST /detokenize`: returns the text of `tokens`.
pub async fn detokenize(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Value>> {
    let answer = body::prepare(&server, request, |server, mut fields| {
        let tokens = fields.value("tokens").ok_or_else(|| ApiError::missing("tokens"))?;
        fields.finish()?;
        Ok(json!({ "content": server.tokenizer.decode(&ids("tokens", &tokens, server.vocab)?) }))
    });
    Ok(Json(answer.await?))
}

/// `POST /apply-template`: renders `messages` and `tools` with the model's chat template.
pub async fn apply_template(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Value>> {
    let answer = body::prepare(&server, request, |server, mut fields| {
        let messages = messages::take(&mut fields)?;
        server.check_model(fields.text("model")?)?;
        let (tools, _) = shape::tools(&mut fields)?;
        fields.finish()?;
        let format = server.chat_format()?;
        format.check_tools(tools.as_ref())?;
        Ok(json!({ "prompt": format.render(&messages, tools.as_ref())?.text }))
    });
    Ok(Json(answer.await?))
}
