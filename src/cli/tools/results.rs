//! Results of tool calls, from a program that the user allows.

use std::sync::atomic::AtomicBool;

use hymba::text::{Call, Tools};
use serde_json::json;

use super::{calls::shown, program::Program};
use crate::cli::{ask, terminal};

/// Maximum number of consecutive rounds of calls answered by the program.
pub const ROUNDS: usize = 8;

/// A program that answers tool calls.
#[derive(Debug)]
pub struct Answers {
    pub program: Program,
    /// Whether to skip the confirmation.
    pub yes: bool,
}

impl Answers {
    /// Returns one result for each of `calls`, in order; `None` if the user does not allow the program to run. Failures
    /// are results too, since the model may be able to handle them.
    pub fn to(&self, calls: &[Call], tools: &Tools, cancel: &AtomicBool) -> anyhow::Result<Option<Vec<String>>> {
        let mut results = Vec::with_capacity(calls.len());
        for call in calls {
            if tools.get(&call.name).is_none() {
                results.push(failed(&format!("unknown tool `{}`", call.name)));
                continue;
            }
            if !self.is_allowed(call, cancel)? {
                return Ok(None);
            }
            results.push(self.program.run(call, cancel)?.unwrap_or_else(|reason| failed(&reason)));
        }
        Ok(Some(results))
    }

    fn is_allowed(&self, call: &Call, cancel: &AtomicBool) -> anyhow::Result<bool> {
        let question = || format!("run {} for {}?", self.program, shown(call));
        Ok(self.yes || ask::ask(&question(), false, cancel)? == Some(true))
    }
}

/// Reports a failure, and returns it as a result.
fn failed(reason: &str) -> String {
    terminal::warn(&format!("the tool call failed: {reason}"));
    json!({ "error": reason }).to_string()
}
