//! Constraints on replies that may call tools.

use std::sync::{Arc, atomic::AtomicBool};

use super::branch::Query;
use crate::{
    Result,
    constrain::{Constraint, Vocabulary},
    text::{Tokenizer, ToolChoice, Tools},
};

/// The constraints that the tools and the tool choice impose on replies.
#[derive(Default)]
pub(super) struct CallConstraints {
    to_messages: Option<Arc<Constraint>>,
    to_results: Option<Arc<Constraint>>,
}

impl CallConstraints {
    /// Compiles the schemas of `tools`; a reply ends at any of `stops`.
    pub fn new(
        tokenizer: &Tokenizer,
        stops: &[String],
        tools: Option<&Tools>,
        choice: &ToolChoice,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let Some(tools) = tools.filter(|_| *choice != ToolChoice::None) else { return Ok(Self::default()) };
        let vocabulary = Vocabulary::new(tokenizer)?;
        let compile = |choice: &ToolChoice| {
            Ok::<_, crate::Error>(Constraint::of_calls(&vocabulary, tools, choice, stops, cancel)?.map(Arc::new))
        };
        let to_messages = compile(choice)?;
        let to_results = match choice {
            ToolChoice::Auto => to_messages.clone(),
            _ => compile(&ToolChoice::Auto)?,
        };
        Ok(Self { to_messages, to_results })
    }

    /// Returns the constraint on the reply to `query`.
    pub fn of(&self, query: Query<'_>) -> Option<&Constraint> {
        match query {
            Query::User(_) => self.to_messages.as_deref(),
            Query::Results(_) => self.to_results.as_deref(),
        }
    }
}
