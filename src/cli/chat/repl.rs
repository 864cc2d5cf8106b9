//! The read–eval–print loop: messages and commands in, replies out.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use hymba::{
    Error, Result,
    engine::{
        Conversation, Timeline,
        conversation::{Kind, Overflow, Reply, ReplySink, Saved, check_replaceable},
        generate::{Generation, StopReason, Timings},
        timeline::Watch,
    },
    format::check_writable,
    limits,
};
use serde_json::json;

use super::{
    commands::{ChatSetting, Command},
    input::Input,
    message::Event,
    screen::{PROMPT, Screen},
    show::{self, turns},
};
use crate::cli::{
    constraint,
    hints::Interface,
    json::speculation,
    options::beyond_training,
    prompt, signals, terminal,
    tools::{self, Answers, ROUNDS},
    usage::{Incomplete, Reported, output_file},
    wording::{counted, drafts, grouped, rate},
};

/// The setup of a conversation beyond the library's options.
pub struct Setup<'m> {
    /// The model file, or the placeholder for the built-in model.
    pub model: String,
    /// A one-line description of the model.
    pub about: Option<&'static str>,
    pub keep_template: bool,
    pub undo_memory: usize,
    /// Whether the reply limit is the default.
    pub default_limit: bool,
    /// The program that answers calls.
    pub answers: Option<Answers>,
    /// Opens an empty timeline with the given context size in tokens.
    pub open: Box<dyn Fn(usize) -> Result<Timeline<'m>> + 'm>,
}

/// An interactive conversation.
pub struct Repl<'m> {
    conversation: Conversation<'m>,
    setup: Setup<'m>,
    screen: Screen,
    cancel: Arc<AtomicBool>,
    /// Text that /read attached to the next message.
    attached: String,
    /// Results of the first calls of the last reply, while others wait for theirs.
    results: Vec<String>,
    /// Whether the next message replaces the last one.
    editing: bool,
    /// Whether the warning about a nearly full context was shown.
    warned_nearly_full: bool,
    /// Whether the note about a template that rewrites past turns was shown.
    rewrite_noted: bool,
    /// Context tokens used before the last turn.
    used_before: usize,
    last: Option<Timings>,
    /// Whether a reply was cut before it matched its constraint.
    incomplete: bool,
}

impl<'m> Repl<'m> {
    /// Returns a loop over `conversation`.
    pub fn new(conversation: Conversation<'m>, setup: Setup<'m>, screen: Screen, cancel: &Arc<AtomicBool>) -> Self {
        Self {
            conversation,
            setup,
            screen,
            cancel: cancel.clone(),
            attached: String::new(),
            results: Vec::new(),
            editing: false,
            warned_nearly_full: false,
            rewrite_noted: false,
            used_before: 0,
            last: None,
            incomplete: false,
        }
    }

    /// Returns the conversation.
    pub fn conversation(&mut self) -> &mut Conversation<'m> {
        &mut self.conversation
    }

    /// Shows the banner.
    pub fn greet(&mut self) {
        if let Some(about) = self.setup.about {
            self.screen.small(about);
        }
        let context = counted(self.conversation.timeline().context(), "token");
        self.screen.small(&format!("{}, context {context}", self.setup.model));
        self.screen.small("/help lists the commands, Ctrl-D exits");
    }

    /// Runs until the end of input. Errors are reported, and the loop continues with the next line.
    pub fn run(&mut self, input: &mut Input) -> anyhow::Result<()> {
        let (mut hinted, mut failed) = (false, false);
        let interface = if input.has_commands() { Interface::Conversation } else { Interface::CommandLine };
        loop {
            if input.is_terminal() {
                if signals::must_end() {
                    return Err(Error::Cancelled.into());
                }
                self.cancel.store(false, Ordering::Relaxed);
            }
            let mut messages = self.conversation.turns().iter().filter(|turn| !turn.answers_results());
            let initial = match messages.next_back().filter(|_| self.editing) {
                Some(turn) if turn.user.starts_with('/') && !turn.user.contains('\n') => format!("/{}", turn.user),
                Some(turn) => turn.user.clone(),
                None => String::new(),
            };
            let branches = self.conversation.branches().into_iter().map(Into::into).collect();
            let done = match input.next(PROMPT, &initial, branches)? {
                Event::End => Ok(false),
                Event::Interrupt if hinted => return Err(Error::Cancelled.into()),
                Event::Interrupt => {
                    hinted = true;
                    self.screen.note("press Ctrl-C again (or Ctrl-D) to exit");
                    continue;
                }
                Event::Line(line) => self.take(&line),
                Event::Message(text) if !input.has_commands() && !self.conversation.calls().is_empty() => {
                    self.take_result(text).map(|()| true)
                }
                Event::Message(text) => self.send(&text),
                Event::Refused(reason) => Err(reason.into()),
            };
            hinted = false;
            match done {
                Ok(true) => {}
                Ok(false) if failed && !input.is_terminal() => return Err(Reported.into()),
                Ok(false) if self.incomplete && !input.is_terminal() => return Err(Incomplete.into()),
                Ok(false) => return Ok(()),
                // The reader of the replies closed the pipe.
                Err(e) if e.is::<io::Error>() => return Err(e),
                Err(e) => match e.downcast_ref() {
                    Some(Error::Cancelled) if input.is_terminal() => {
                        self.screen.note("stopped before the reply began; the conversation is unchanged");
                    }
                    Some(Error::Cancelled) => return Err(e),
                    // Every further line would fail too.
                    _ if !input.is_terminal() && self.model_file_changed() => return Err(e),
                    _ => {
                        let message = terminal::one_line(&e, interface);
                        terminal::error(&message);
                        self.screen.event("error", json!({ "message": message }))?;
                        failed = true;
                    }
                },
            }
        }
    }

    /// Whether the model file changed during the conversation.
    fn model_file_changed(&mut self) -> bool {
        self.conversation.timeline().session().model().check_file().is_err()
    }

    /// Handles a line: a command or a message. Returns whether to continue.
    fn take(&mut self, line: &str) -> anyhow::Result<bool> {
        match Command::parse(line) {
            Some(command) => {
                self.editing = false;
                self.command(command.map_err(Error::Request)?)
            }
            None => self.send(&line.strip_prefix("//").map_or(line.into(), |rest| format!("/{rest}"))),
        }
    }

    /// Handles a message.
    fn send(&mut self, text: &str) -> anyhow::Result<bool> {
        let editing = std::mem::take(&mut self.editing);
        if text.trim().is_empty() && self.attached.is_empty() {
            return Ok(true);
        }
        if editing {
            self.replace(text)?;
        } else {
            let message = std::mem::take(&mut self.attached) + text;
            self.stream_replies(|conversation, sink| conversation.send(&message, sink))?;
        }
        Ok(true)
    }

    /// Records the result of a tool call; once all calls of the last reply have results, they are sent.
    fn take_result(&mut self, result: String) -> anyhow::Result<()> {
        limits::check_result(&result)?;
        let calls = self.conversation.calls();
        self.results.push(result);
        if let Some(next) = calls.get(self.results.len()) {
            self.screen.note(&format!("the next call is {}", tools::shown(next)));
            return Ok(());
        }
        let results = std::mem::take(&mut self.results);
        self.stream_replies(|conversation, sink| conversation.send_results(&results, sink))
    }

    /// Streams the reply to the message that `send` sends, and further replies as long as a program answers their tool
    /// calls.
    fn stream_replies(
        &mut self,
        send: impl FnOnce(&mut Conversation<'m>, &mut ReplySink<'_>) -> Result<Reply>,
    ) -> anyhow::Result<()> {
        self.results.clear();
        self.stream_reply(send)?;
        for round in 0.. {
            let calls = self.conversation.calls();
            let Some(tools) = self.conversation.tools().filter(|_| !calls.is_empty()) else { break };
            let stopped = self.cancel.load(Ordering::Relaxed);
            let answers = self.setup.answers.as_ref().filter(|_| round < ROUNDS && !stopped);
            let results = answers.map(|answers| answers.to(&calls, tools, &self.cancel)).transpose()?.flatten();
            let Some(results) = results else {
                if self.setup.answers.is_some() && round == ROUNDS {
                    self.screen.warn(&format!("the program answered {ROUNDS} times in a row; the next call waits"));
                }
                let which =
                    if calls.len() > 1 { format!("the first of {} calls", calls.len()) } else { "the call".into() };
                self.screen.note(&format!("/tool RESULT answers {which}"));
                break;
            };
            let turn = self.conversation.turns().len() + 1;
            self.screen.event("results", json!({ "turn": turn, "results": results }))?;
            self.stream_reply(|conversation, sink| conversation.send_results(&results, sink))?;
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> anyhow::Result<bool> {
        match command {
            Command::Help => self.screen.print(&show::help(self.screen.width()))?,
            Command::Exit => return Ok(false),
            Command::Clear => {
                self.conversation.clear()?;
                self.attached.clear();
                self.results.clear();
                self.screen.note("cleared the conversation");
            }
            Command::System(text) => self.set_system(text.as_deref())?,
            Command::Set(None) | Command::Show => {
                let Setup { model, undo_memory, .. } = &self.setup;
                let width = self.screen.width();
                let page = show::page(&mut self.conversation, model, self.last.as_ref(), *undo_memory, width);
                self.screen.print(&page)?;
            }
            Command::History(count) => self.history(count.unwrap_or(usize::MAX))?,
            Command::Set(Some(setting)) => self.set(setting)?,
            Command::Undo(count) => {
                self.waiting(|conversation, watch| conversation.undo(count, watch))?;
                self.results.clear();
                self.screen.note(&format!("undid {}", turns(count)));
            }
            Command::Regen => self.stream_replies(|conversation, sink| conversation.regenerate(sink))?,
            Command::Edit(Some(text)) => self.replace(&text)?,
            Command::Edit(None) if self.conversation.turns().is_empty() => self.replace("")?,
            Command::Edit(None) if self.screen.terminal => self.editing = true,
            Command::Edit(None) => return Err(Error::Request("/edit TEXT needs the new message here".into()).into()),
            Command::Save(path, force) => {
                output_file("/save", &path)?;
                self.save(&path, force, &self.cancel.clone())?;
            }
            Command::Load(path) => self.load(&path)?,
            Command::Read(path) => {
                let text = prompt::read_file(&path, &self.cancel)?;
                let characters = counted(text.chars().count(), "character");
                self.attached += &text;
                self.attached.push('\n');
                self.screen.note(&format!("attached {} ({characters}) to the next message", path.display()));
            }
            Command::Tool(Some(result)) => self.take_result(result)?,
            Command::Tool(None) if self.attached.is_empty() => {
                return Err(Error::Request("/tool: the result must follow, or be attached with /read".into()).into());
            }
            Command::Tool(None) => {
                let result = std::mem::take(&mut self.attached);
                self.take_result(result)?;
            }
            Command::Format(file) => self.set_format(file.as_deref())?,
            Command::Branch(None) => self.screen.print(&format!("{}\n", self.conversation.branches().join("\n")))?,
            Command::Branch(Some(name)) => {
                self.conversation.branch(&name)?;
                self.screen.note(&format!("created and switched to branch {name}"));
            }
            Command::Switch(name) => {
                self.waiting(|conversation, watch| conversation.switch(&name, watch))?;
                self.results.clear();
                self.screen.note(&format!("switched to branch {name}, {}", turns(self.conversation.turns().len())));
            }
        }
        Ok(true)
    }

    /// Sets the system message.
    pub fn set_system(&mut self, text: Option<&str>) -> Result<()> {
        self.waiting(|conversation, watch| conversation.set_system(text, watch))
    }

    /// Constrains replies to the format in a file, or removes the constraint.
    fn set_format(&mut self, file: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = file else {
            self.conversation.set_constraint(None);
            self.screen.note("replies are no longer constrained");
            return Ok(());
        };
        if self.conversation.tools().is_some() {
            let problem = "/format: replies cannot be constrained while tools are available; start without --tools";
            return Err(Error::Request(problem.into()).into());
        }
        let shape = constraint::format_file(path, &self.cancel)?;
        let name = format!("/format {}", path.display());
        let constraint = constraint::compile(&name, &shape, self.conversation.tokenizer(), &self.cancel)?;
        self.conversation.set_constraint(Some(constraint));
        self.screen.note(&format!("replies are constrained by {}", path.display()));
        Ok(())
    }

    fn set(&mut self, setting: ChatSetting) -> anyhow::Result<()> {
        match setting {
            ChatSetting::Seed(seed) => self.conversation.sampler().set_seed(seed),
            ChatSetting::Predict(limit) => {
                self.conversation.set_limit(limit);
                self.setup.default_limit = false;
            }
            ChatSetting::Context(tokens) => self.set_context(tokens)?,
            ChatSetting::Overflow(overflow) => self.conversation.set_overflow(overflow),
            ChatSetting::Sampling(setting, value) => {
                let mut params = self.conversation.sampler().params().clone();
                let refuse = |reason| Error::Request(format!("/set {} {value}: {reason}", setting.name()));
                params.set(setting, value).map_err(refuse)?;
                self.conversation.sampler().set_params(params);
            }
        }
        Ok(())
    }

    /// Moves the conversation to a context of `tokens`. Its state moves through a temporary session file, as when a
    /// conversation is resumed.
    fn set_context(&mut self, tokens: usize) -> anyhow::Result<()> {
        let used = self.conversation.used();
        if tokens < used {
            let (tokens, used) = (grouped(tokens), grouped(used));
            let problem =
                format!("/set context {tokens}: the conversation already takes {used}; /undo or /clear makes room");
            return Err(Error::Request(problem).into());
        }
        let mut timeline = (self.setup.open)(tokens)?;
        if used > 0 {
            let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
            let file = folder.path().join("conversation");
            self.waiting(|conversation, watch| {
                let steps = conversation.timeline().steps().to_vec();
                conversation.timeline().seek(&steps, watch)?;
                let saved = Saved::text(conversation.sampler(), None);
                conversation.timeline().save(&file, &saved, false)
            })?;
            timeline.load(&file, |_: Saved, _| Ok(()))?;
            timeline.checkpoint()?;
        }
        self.conversation.set_timeline(timeline);
        if let Some(warning) = beyond_training(self.conversation.timeline().session().model(), tokens) {
            self.screen.warn(&warning);
        }
        self.warned_nearly_full = false;
        Ok(())
    }

    /// Shows the last `count` turns.
    fn history(&self, count: usize) -> io::Result<()> {
        let all = self.conversation.turns();
        let shown = &all[all.len() - all.len().min(count)..];
        let tools = self.conversation.tools();
        shown.iter().try_for_each(|turn| self.screen.turn(&show::query(turn), &show::reply(&turn.reply, tools)))
    }

    /// Replaces the last message with `message` and regenerates.
    fn replace(&mut self, message: &str) -> anyhow::Result<()> {
        self.waiting(|conversation, watch| conversation.undo(1, watch))?;
        self.stream_replies(|conversation, sink| conversation.send(message, sink))
    }

    /// Drops the state, which may be inconsistent, and keeps the messages, from which it is recomputed.
    pub fn forget_state(&mut self) -> Result<()> {
        self.conversation.timeline().clear()
    }

    /// Saves the conversation, replacing a file of another kind only if `force`. `cancel` interrupts slow preparation.
    pub fn save(&mut self, path: &Path, force: bool, cancel: &AtomicBool) -> Result<()> {
        check_writable(path)?;
        check_replaceable(path, Kind::Chat, force)?;
        self.conversation.timeline().session().model().fingerprint_until(cancel)?;
        let bar = self.screen.bar();
        self.conversation.save(path, &Watch { cancel, progress: &|done, total| bar.show(done, total) })?;
        self.screen.note(&format!("saved {}", path.display()));
        Ok(())
    }

    /// Resumes a conversation from a file and shows its last turns.
    pub fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        const SHOWN_TURNS: usize = 2;
        self.conversation.timeline().session().model().fingerprint_until(&self.cancel)?;
        self.conversation.load(path, self.setup.keep_template)?;
        self.results.clear();
        let count = self.conversation.turns().len();
        if self.screen.terminal && !self.screen.quiet {
            if count > SHOWN_TURNS {
                self.screen.small(&format!("{} earlier; /history shows them", turns(count - SHOWN_TURNS)));
            }
            self.history(SHOWN_TURNS)?;
        }
        let usage = show::usage(&mut self.conversation);
        self.screen.note(&format!("loaded {} from {}, {usage}", turns(count), path.display()));
        Ok(())
    }

    /// Runs an operation that may have to recompute tokens.
    fn waiting<T>(&mut self, work: impl FnOnce(&mut Conversation<'m>, &Watch<'_>) -> Result<T>) -> Result<T> {
        let bar = self.screen.bar();
        work(&mut self.conversation, &Watch { cancel: &self.cancel, progress: &|done, total| bar.show(done, total) })
    }

    /// Streams the reply to the message that `send` sends.
    fn stream_reply(
        &mut self,
        send: impl FnOnce(&mut Conversation<'m>, &mut ReplySink<'_>) -> Result<Reply>,
    ) -> anyhow::Result<()> {
        self.screen.event("start", json!({ "turn": self.conversation.turns().len() + 1 }))?;
        let mut writer = self.screen.reply(self.conversation.tools());
        // Every output failure ends the reply like a closed pipe: the text up to there is kept.
        let mut output_error = None;
        let done = {
            let bar = self.screen.bar();
            let watch = Watch { cancel: &self.cancel, progress: &|done, total| bar.show(done, total) };
            let mut text = |text: &str| {
                writer.write(text).map_err(|e| {
                    output_error = Some(e);
                    io::ErrorKind::BrokenPipe.into()
                })
            };
            send(&mut self.conversation, &mut ReplySink { watch, text: &mut text })
        };
        let Reply { generation, dropped, rewritten } = match done {
            Err(e) => {
                writer.finish()?;
                return Err(e.into());
            }
            Ok(reply) => reply,
        };
        if let Some(e) = output_error {
            return Err(anyhow::Error::new(e).context("cannot write the text"));
        }
        writer.finish()?;
        self.last = Some(generation.timings);
        let reply = self.reply_json(&generation);
        self.screen.event("end", reply)?;
        self.incomplete |= generation.stop == StopReason::Length;
        self.report_end(&generation.timings, generation.stop, dropped);
        self.note_rewritten(rewritten);
        if generation.stop == StopReason::Interrupted && !self.screen.terminal {
            return Err(Error::Cancelled.into());
        }
        Ok(())
    }

    /// Returns a reply as a JSON object.
    fn reply_json(&mut self, reply: &Generation) -> serde_json::Value {
        let t = &reply.timings;
        let calls = self.conversation.tools().map(|_| tools::json(&self.conversation.calls()));
        let mut object = json!({
            "turn": self.conversation.turns().len(),
            "text": reply.text,
            "prompt_tokens": t.prompt_tokens,
            "generated_tokens": t.generated_tokens,
            "stop_reason": reply.stop.name(),
            "seed": self.conversation.sampler().seed(),
            "context": self.conversation.timeline().context(),
            "context_used": self.conversation.used(),
            "speculation": speculation(t),
            "timings": {
                "prompt_seconds": t.prompt.as_secs_f64(),
                "prompt_tokens_per_second": t.prompt_rate(),
                "generation_seconds": t.generation.as_secs_f64(),
                "generated_tokens_per_second": t.decode_rate(),
            },
        });
        if let Some(calls) = calls {
            object["tool_calls"] = calls;
        }
        object
    }

    /// Notes, once, that the template forces reprocessing.
    fn note_rewritten(&mut self, tokens: usize) {
        if tokens > 0 && !std::mem::replace(&mut self.rewrite_noted, true) {
            self.screen.warn(&format!(
                "the chat template renders past turns differently than before: {tokens} tokens were dropped, and the new rendering was processed before this reply; this may happen again (shown once)"
            ));
        }
    }

    /// Shows notes and warnings after a reply.
    fn report_end(&mut self, timings: &Timings, stop: StopReason, dropped: usize) {
        if let Some(reason) = self.conversation.timeline().fallback_reason() {
            self.screen.warn(&terminal::describe_fallback(reason));
        }
        let usage = show::usage(&mut self.conversation);
        let stopped = if stop == StopReason::Interrupted { "stopped · " } else { "" };
        let drafts = drafts(timings).map(|drafts| format!(" · {drafts}")).unwrap_or_default();
        self.screen.small(&format!("[{stopped}{usage} · {}{drafts}]", rate(timings.decode_rate())));
        if let (StopReason::Limit, true, Some(limit)) =
            (stop, self.setup.default_limit, self.conversation.options().limit)
        {
            let limit = counted(limit, "token");
            let flag = if self.screen.terminal { "/set predict N changes that" } else { "-n N changes that" };
            self.screen.notify(&format!("the reply was cut off after {limit}; {flag}, -1 is no limit"));
        }
        if stop == StopReason::Length {
            let advice = match self.screen.terminal {
                true => "/set predict N or /set context N allows more",
                false => "a larger -n or -c allows more",
            };
            self.screen.warn(&format!("the reply is incomplete: it ended before it matched its format; {advice}"));
        }
        if dropped > 0 {
            self.screen.warn(&format!("context full: dropped the oldest {}", turns(dropped)));
        }
        let (used, context) = (self.conversation.used(), self.conversation.timeline().context());
        let free = context.saturating_sub(used);
        let last_turn_tokens = used.saturating_sub(self.used_before);
        let nearly_full = free < context / 10 || free < context / 5 && free < last_turn_tokens;
        self.used_before = used;
        let slides = self.conversation.options().overflow == Overflow::Slide;
        let advice = match self.screen.terminal {
            true => "/set context N makes it larger, /set overflow slide drops old turns",
            false => "-c N makes it larger, --overflow slide drops old turns",
        };
        if stop == StopReason::ContextFull {
            self.screen
                .warn(&format!("the context is full ({} tokens), the reply ends here; {advice}", grouped(context)));
        } else if nearly_full && !self.warned_nearly_full && !slides {
            let left = counted(free, "token");
            self.screen.warn(&format!("the context is nearly full: {usage} used, {left} left; {advice}"));
        }
        self.warned_nearly_full = nearly_full;
    }
}
