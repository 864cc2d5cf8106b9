//! `GET /health` and `GET /metrics`.

use std::{
    fmt::{Display, Write},
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Server;

/// Reports whether the server accepts requests.
pub async fn health(State(server): State<Arc<Server>>) -> Response {
    if server.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "shutting down" }))).into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

/// Returns the metrics in the Prometheus text format.
pub async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page(&server))
}

fn page(server: &Server) -> String {
    let m = server.scheduler.metrics();
    let requests = server.counters.requests();
    let requests =
        requests.iter().map(|((route, status), count)| (format!("route=\"{route}\",status=\"{status}\""), count));
    let outcomes = [("done", m.done), ("failed", m.failed), ("cancelled", m.cancelled), ("refused", m.refused)];
    let outcomes = outcomes.map(|(outcome, count)| (format!("outcome=\"{outcome}\""), count));
    let mut page = Page(String::new());
    page.add("http_requests_total", "HTTP requests by route and status", requests);
    page.add("sequences_total", "Sequences by outcome; n answers to a prompt are n sequences", outcomes);
    let rate = ratio(m.decode_bytes as f64, m.decode_time.as_secs_f64());
    let connections = server.counters.connections.load(Ordering::Relaxed);
    let rows: [(&str, &str, &dyn Display); 22] = [
        ("http_connections", "Open connections", &connections),
        ("sequences_running", "Running sequences", &m.running),
        ("sequences_queued", "Queued sequences", &m.queued),
        ("slots", "Maximum number of running sequences", &m.slots),
        ("prompt_tokens_total", "Prompt tokens processed", &m.prompt_tokens),
        ("cached_tokens_total", "Prompt tokens reused from prefix states", &m.cached_tokens),
        ("generated_tokens_total", "Tokens generated", &m.generated_tokens),
        ("passes_total", "Forward passes", &m.passes),
        ("rows_total", "Rows (tokens) of all passes", &m.rows),
        ("rows_per_pass", "Mean number of rows per pass", &ratio(m.rows as f64, m.passes as f64)),
        ("drafted_tokens_total", "Draft tokens verified", &m.drafted),
        ("accepted_tokens_total", "Draft tokens accepted", &m.accepted),
        ("busy_seconds_total", "Time in forward passes", &m.busy.as_secs_f64()),
        ("decode_read_bytes_per_second", "Read rate of decode passes", &rate),
        ("sequence_bytes", "State of all slots", &m.text_bytes),
        ("prefix_bytes", "Size of prefix states", &m.prefix_bytes),
        ("prefix_limit_bytes", "Maximum size of prefix states", &m.prefix_limit),
        ("prefixes", "Prefix states", &m.prefixes),
        ("prefix_hits_total", "Sequences that reused a prefix state", &m.prefix_hits),
        ("prefix_misses_total", "Sequences that reused none", &m.prefix_misses),
        ("prefix_write_failures_total", "Failed writes to the folder of prefix states", &m.prefix_write_failures),
        ("answer_bytes", "Token ids of earlier answers, which are kept for continued chats", &server.answers.bytes()),
    ];
    for (name, help, value) in rows {
        page.add(name, help, [("".into(), value)]);
    }
    if let Some(limit) = m.read_limit {
        page.add("read_limit_bytes_per_second", "Measured memory read bandwidth", [("".into(), limit)]);
        let share = ratio(rate, limit);
        page.add("read_limit_share", "Read rate of decode passes as a share of the bandwidth", [("".into(), share)]);
    }
    page.0
}

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A page of metrics.
struct Page(String);

impl Page {
    /// Adds a metric: its values by their labels. Counters are those whose name ends in `_total`.
    fn add(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (String, impl Display)>) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(self.0, "# HELP hymba_{name} {help}\n# TYPE hymba_{name} {kind}"); // into a string
        for (labels, value) in values {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "hymba_{name}{labels} {value}");
        }
    }
}
