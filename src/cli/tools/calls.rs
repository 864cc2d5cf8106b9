//! Calls of tools, for people and for programs.

use hymba::text::Call;

/// Returns a call as a person reads it.
pub fn shown(call: &Call) -> String {
    format!("{} {}", call.name, call.arguments)
}

/// Returns calls for programs.
pub fn json(calls: &[Call]) -> serde_json::Value {
    calls.iter().map(|call| serde_json::json!({ "name": call.name, "arguments": call.arguments() })).collect()
}
