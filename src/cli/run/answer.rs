//! `run --chat` with tools or contexts: a message, the results of tool calls, and the final reply.

use std::{io, sync::atomic::AtomicBool};

use hymba::{
    Error, Result,
    engine::{
        Conversation,
        conversation::{Reply, ReplySink},
        generate::{Generation, StopReason},
        timeline::Watch,
    },
    text::{ReplyParser, ReplyPart, Tools, calls},
};

use super::output::{Format, Output};
use crate::cli::{
    progress::Bar,
    terminal,
    tools::{self, Answers, ROUNDS},
};

/// Generates the reply to `message` in an empty conversation, and further replies as long as `answers` provides results
/// for tool calls; returns the last one, with the timings of all.
pub fn answer(
    conversation: &mut Conversation<'_>,
    message: &str,
    answers: Option<&Answers>,
    output: &mut Output,
    quiet: bool,
    cancel: &AtomicBool,
) -> anyhow::Result<Generation> {
    let parses = answers.is_some() && output.format() == Format::Text;
    let offered = conversation.tools().cloned();
    let offered = offered.as_ref().filter(|_| parses);
    let mut show = Show { output, offered, quiet, cancel, shown: false };
    let mut done = show.reply(|sink| conversation.send(message, sink))?;
    for round in 0.. {
        let calls = conversation.calls();
        let (Some(answers), Some(tools)) = (answers, conversation.tools().filter(|_| !calls.is_empty())) else { break };
        if matches!(done.stop, StopReason::Interrupted | StopReason::BrokenPipe) {
            break;
        }
        if round == ROUNDS {
            terminal::warn(&format!("the program answered {ROUNDS} times in a row; the last call has no result"));
            break;
        }
        if !quiet {
            calls.iter().for_each(|call| terminal::note(&format!("the model calls {}", tools::shown(call))));
        }
        let Some(results) = answers.to(&calls, tools, cancel)? else { break };
        let before = done.timings;
        done = show.reply(|sink| conversation.send_results(&results, sink))?;
        done.timings += before;
    }
    let calls = conversation.calls();
    if parses && !calls.is_empty() {
        show.text(&calls::to_text("", &calls))?;
    }
    show.output.finish()?;
    Ok(done)
}

/// Outputs replies.
struct Show<'a> {
    output: &'a mut Output,
    /// The tools whose calls are hidden from the output.
    offered: Option<&'a Tools>,
    quiet: bool,
    cancel: &'a AtomicBool,
    /// Whether a separator is needed before the next reply.
    shown: bool,
}

impl Show<'_> {
    /// Outputs the reply that `send` streams.
    fn reply(&mut self, send: impl FnOnce(&mut ReplySink<'_>) -> Result<Reply>) -> anyhow::Result<Generation> {
        let mut parser = self.offered.map(ReplyParser::new);
        let (bar, cancel) = (Bar::tokens(!self.quiet), self.cancel);
        let mut separated = !std::mem::take(&mut self.shown);
        let mut show = |show: &mut Self, text: &str| {
            let line = if text.is_empty() || std::mem::replace(&mut separated, true) { "" } else { "\n" };
            show.text(&format!("{line}{text}"))
        };
        let reply = send(&mut ReplySink {
            watch: Watch { cancel, progress: &|done, total| bar.show(done, total) },
            text: &mut |text| match parser.as_mut().map(|parser| parser.push(text)) {
                Some(parts) => show(self, &text_of(parts)),
                None => show(self, text),
            },
        });
        let reply = reply.map_err(|e| match e {
            Error::ConversationFull { needed, free, context } => Error::ContextFull { needed, free, context },
            e => e,
        })?;
        if let Some(parser) = parser {
            show(self, &text_of(parser.finish()))?;
        }
        Ok(reply.generation)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.shown |= !text.is_empty();
        self.output.show(text)
    }
}

/// Returns the text of `parts`.
fn text_of(parts: Vec<ReplyPart>) -> String {
    let texts = parts.into_iter().filter_map(|part| match part {
        ReplyPart::Text(text) => Some(text),
        ReplyPart::Call(_) => None,
    });
    texts.collect()
}
