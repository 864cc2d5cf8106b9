//! Common parts of JSON output; see docs/json.md.

use hymba::Timings;
use serde_json::{Value, json};

/// The format version, part of every printed object.
pub const JSON_VERSION: u32 = 1;

/// Returns an event of --jsonl with the fields of `object`.
pub fn event(name: &str, object: Value) -> Value {
    let mut event = json!({ "event": name, "version": JSON_VERSION });
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, object) {
        event.extend(fields);
    }
    event
}

/// Returns the counts of speculative decoding.
pub fn speculation(t: &Timings) -> Value {
    json!({
        "passes": t.passes,
        "tokens_per_pass": t.tokens_per_pass(),
        "drafted_tokens": t.drafted,
        "accepted_tokens": t.accepted,
        "accepted_share": t.accepted_share(),
    })
}
