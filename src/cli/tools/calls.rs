//! Display of tool calls.

use hymba::text::Call;

/// Formats a call for people.
pub fn shown(call: &Call) -> String {
    format!("{} {}", call.name, call.arguments)
}

/// Formats calls for programs.
pub fn json(calls: &[Call]) -> serde_json::Value {
    calls.iter().map(|call| serde_json::json!({ "name": call.name, "arguments": call.arguments() })).collect()
}
