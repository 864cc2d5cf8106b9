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
    let mut page = Page(String::new());
    page.head("http_requests_total", "counter", "HTTP requests by route and status");
    for ((route, status), count) in server.counters.requests() {
        page.row("http_requests_total", &format!("{{route=\"{route}\",status=\"{status}\"}}"), count);
    }
    page.gauge("http_connections", "Open connections", server.counters.connections.load(Ordering::Relaxed));
    page.head("texts_total", "counter", "Texts by outcome; n answers to a prompt are n texts");
    for (outcome, count) in [("done", m.done), ("failed", m.failed), ("cancelled", m.cancelled), ("refused", m.refused)]
    {
        page.row("texts_total", &format!("{{outcome=\"{outcome}\"}}"), count);
    }
    page.gauge("texts_running", "Running texts", m.running);
    page.gauge("texts_queued", "Texts in the queue", m.queued);
    page.gauge("slots", "Maximum number of running texts", m.slots);
    page.counter("prompt_tokens_total", "Prompt tokens processed", m.prompt_tokens);
    page.counter("cached_tokens_total", "Prompt tokens reused from prefix states", m.cached_tokens);
    page.counter("generated_tokens_total", "Tokens generated", m.generated_tokens);
    page.counter("passes_total", "Forward passes", m.passes);
    page.counter("rows_total", "Rows (tokens) of all passes", m.rows);
    page.gauge("rows_per_pass", "Mean number of rows per pass", ratio(m.rows as f64, m.passes as f64));
    page.counter("drafted_tokens_total", "Draft tokens verified", m.drafted);
    page.counter("accepted_tokens_total", "Draft tokens accepted", m.accepted);
    page.counter("busy_seconds_total", "Time in forward passes", m.busy.as_secs_f64());
    let rate = ratio(m.decode_bytes as f64, m.decode_time.as_secs_f64());
    page.gauge("decode_read_bytes_per_second", "Read rate of decode passes", rate);
    if let Some(limit) = m.read_limit {
        page.gauge("read_limit_bytes_per_second", "Measured memory read bandwidth", limit);
        page.gauge("read_limit_share", "Read rate of decode passes as a share of the bandwidth", ratio(rate, limit));
    }
    page.gauge("text_bytes", "State of running texts", m.text_bytes);
    page.gauge("prefix_bytes", "Size of prefix states", m.prefix_bytes);
    page.gauge("prefix_limit_bytes", "Maximum size of prefix states", m.prefix_limit);
    page.gauge("prefixes", "Prefix states", m.prefixes);
    page.counter("prefix_hits_total", "Texts that reused a prefix state", m.prefix_hits);
    page.counter("prefix_misses_total", "Texts that reused none", m.prefix_misses);
    page.0
}

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A page of metrics.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP hymba_{name} {help}\n# TYPE hymba_{name} {kind}"); // cannot fail
    }

    fn row(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "hymba_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.row(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.row(name, "", value);
    }
}
