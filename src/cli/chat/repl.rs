//! The loop: a message or a command comes in, a reply goes out.

use std::{
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hymba::{
    Error, Result,
    engine::{
        Conversation,
        conversation::{Kind, Reply, ReplySink, check_replaceable},
        generate::{StopReason, Timings},
        timeline::Watch,
    },
    format::check_writable,
};

use super::{
    commands::{Command, Knob},
    input::Input,
    message::Event,
    screen::Screen,
    show::{self, turns},
};
use crate::cli::{hints::Place, prompt, signals, terminal, usage::Reported};

/// A conversation with a person.
pub struct Repl<'m> {
    conversation: Conversation<'m>,
    model: String,
    screen: Screen,
    cancel: Arc<AtomicBool>,
    keep_template: bool,
    undo_memory: usize,
    /// Text that /read put before the next message.
    attached: String,
    /// Is the next message the last one, changed?
    editing: bool,
    /// Is it said that the context is nearly full?
    announced: bool,
    /// Tokens of the context that were used before the last turn.
    used_before: usize,
    last: Option<Timings>,
}

impl<'m> Repl<'m> {
    /// Talks in `conversation` with the model in file `model`.
    pub fn new(
        conversation: Conversation<'m>,
        model: &str,
        screen: Screen,
        cancel: &Arc<AtomicBool>,
        keep_template: bool,
        undo_memory: usize,
    ) -> Self {
        Self {
            conversation,
            model: model.into(),
            screen,
            cancel: cancel.clone(),
            keep_template,
            undo_memory,
            attached: String::new(),
            editing: false,
            announced: false,
            used_before: 0,
            last: None,
        }
    }

    /// The conversation.
    pub fn conversation(&mut self) -> &mut Conversation<'m> {
        &mut self.conversation
    }

    /// What a person sees first.
    pub fn greet(&mut self) {
        let used = show::usage(&mut self.conversation);
        self.screen.small(&format!("{}, {used}. /help lists the commands, Ctrl-D leaves.", self.model));
    }

    /// Talks until nothing more comes. What can't be done is told, and a person or the next line of a pipe goes on.
    pub fn run(&mut self, input: &mut Input) -> anyhow::Result<()> {
        let (mut hinted, mut failed) = (false, false);
        let place = if input.has_commands() { Place::Conversation } else { Place::CommandLine };
        loop {
            if input.is_terminal() {
                if signals::must_end() {
                    return Err(Error::Cancelled.into());
                }
                self.cancel.store(false, Ordering::Relaxed);
            }
            let initial = match self.conversation.turns().last().filter(|_| self.editing) {
                Some(turn) if turn.user.starts_with('/') && !turn.user.contains('\n') => format!("/{}", turn.user),
                Some(turn) => turn.user.clone(),
                None => String::new(),
            };
            let branches = self.conversation.branches().into_iter().map(Into::into).collect();
            let done = match input.next("> ", &initial, branches)? {
                Event::End => Ok(false),
                Event::Interrupt if hinted => return Err(Error::Cancelled.into()),
                Event::Interrupt => {
                    hinted = true;
                    self.screen.note("Ctrl-C once more leaves, and so does Ctrl-D");
                    continue;
                }
                Event::Line(line) => self.take(&line),
                Event::Message(text) => self.say(&text),
                Event::Refused(why) => Err(why.into()),
            };
            hinted = false;
            match done {
                Ok(true) => {}
                Ok(false) if failed && !input.is_terminal() => return Err(Reported.into()),
                Ok(false) => return Ok(()),
                // Nobody reads the replies any more.
                Err(e) if e.is::<io::Error>() => return Err(e),
                Err(e) => match e.downcast_ref() {
                    Some(Error::Cancelled) if input.is_terminal() => {
                        self.screen.note("stopped before a reply began; the conversation is as it was");
                    }
                    Some(Error::Cancelled) => return Err(e),
                    // No line will do better.
                    _ if !input.is_terminal() && self.model_is_gone() => return Err(e),
                    _ => {
                        terminal::note(&terminal::one_line(&e, place));
                        failed = true;
                    }
                },
            }
        }
    }

    /// Whether the model's file was changed under the conversation.
    fn model_is_gone(&mut self) -> bool {
        self.conversation.timeline().session().model().check_file().is_err()
    }

    /// Takes a line, a command or a message; says whether to go on.
    fn take(&mut self, line: &str) -> anyhow::Result<bool> {
        match Command::parse(line) {
            Some(command) => {
                self.editing = false;
                self.command(command.map_err(Error::Request)?)
            }
            None => self.say(&line.strip_prefix("//").map_or(line.into(), |rest| format!("/{rest}"))),
        }
    }

    /// Takes a message.
    fn say(&mut self, text: &str) -> anyhow::Result<bool> {
        let editing = std::mem::take(&mut self.editing);
        if text.trim().is_empty() && self.attached.is_empty() {
            return Ok(true);
        }
        if editing {
            self.replace(text)?;
        } else {
            let message = std::mem::take(&mut self.attached) + text;
            self.stream_reply(|conversation, sink| conversation.send(&message, sink))?;
        }
        Ok(true)
    }

    fn command(&mut self, command: Command) -> anyhow::Result<bool> {
        match command {
            Command::Help => print(&show::help())?,
            Command::Exit => return Ok(false),
            Command::Clear => {
                self.conversation.clear()?;
                self.attached.clear();
                self.screen.note("the conversation is empty");
            }
            Command::System(text) => self.set_system(text.as_deref())?,
            Command::Set(None) | Command::Show => {
                print(&show::page(&mut self.conversation, &self.model, self.last.as_ref(), self.undo_memory))?;
            }
            Command::Set(Some(knob)) => self.set(knob)?,
            Command::Undo(count) => {
                let gone = self.waiting(|conversation, watch| conversation.undo(count, watch))?;
                self.screen.note(&format!("took back {}", turns(gone.len())));
            }
            Command::Regen => self.stream_reply(|conversation, sink| conversation.regenerate(sink))?,
            Command::Edit(Some(text)) => self.replace(&text)?,
            Command::Edit(None) if self.conversation.turns().is_empty() => self.replace("")?,
            Command::Edit(None) if self.screen.terminal => self.editing = true,
            Command::Edit(None) => return Err(Error::Request("/edit needs the new message after it".into()).into()),
            Command::Save(path, force) => self.save(&path, force, &self.cancel.clone())?,
            Command::Load(path) => self.load(&path)?,
            Command::Read(path) => {
                let text = prompt::read_file(&path, &self.cancel)?;
                let characters = text.chars().count();
                self.attached += &text;
                self.attached.push('\n');
                self.screen
                    .note(&format!("{characters} characters of {} come before your next message", path.display()));
            }
            Command::Branch(None) => print(&format!("{}\n", self.conversation.branches().join("\n")))?,
            Command::Branch(Some(name)) => {
                let from = self.conversation.branch_name().to_owned();
                self.conversation.branch(&name)?;
                self.screen.note(&format!("on branch {name}; {from} stays where it is"));
            }
            Command::Switch(name) => {
                self.waiting(|conversation, watch| conversation.switch(&name, watch))?;
                self.screen.note(&format!("on branch {name}, {}", turns(self.conversation.turns().len())));
            }
        }
        Ok(true)
    }

    /// Sets the system message.
    pub fn set_system(&mut self, text: Option<&str>) -> Result<()> {
        self.waiting(|conversation, watch| conversation.set_system(text, watch))
    }

    fn set(&mut self, knob: Knob) -> Result<()> {
        match knob {
            Knob::Seed(seed) => self.conversation.sampler().set_seed(seed),
            Knob::Predict(limit) => self.conversation.set_limit(limit),
            Knob::Sampling(setting, value) => {
                let mut params = self.conversation.sampler().params().clone();
                let refuse = |why| Error::Request(format!("/set {} {value}: the value {why}", setting.name()));
                params.set(setting, value).map_err(refuse)?;
                self.conversation.sampler().set_params(params);
            }
        }
        Ok(())
    }

    /// Sends `message` in place of the last one.
    fn replace(&mut self, message: &str) -> anyhow::Result<()> {
        self.waiting(|conversation, watch| conversation.undo(1, watch))?;
        self.stream_reply(|conversation, sink| conversation.send(message, sink))
    }

    /// Forgets the state, which may be half of something, and keeps what was said: the state follows from it.
    pub fn forget_state(&mut self) -> Result<()> {
        self.conversation.timeline().clear()
    }

    /// Writes the conversation to a file, over one that is something else only if `force`. `cancel` ends what takes time before.
    pub fn save(&mut self, path: &Path, force: bool, cancel: &AtomicBool) -> Result<()> {
        check_writable(path)?;
        check_replaceable(path, Kind::Chat, force)?;
        self.conversation.timeline().session().model().fingerprint_until(cancel)?;
        let bar = self.screen.bar();
        self.conversation.save(path, &Watch { cancel, progress: &|done, total| bar.show(done, total) })?;
        self.screen.note(&format!("wrote {}", path.display()));
        Ok(())
    }

    /// Goes on with a conversation from a file.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.conversation.timeline().session().model().fingerprint_until(&self.cancel)?;
        self.conversation.load(path, self.keep_template)?;
        let turns = turns(self.conversation.turns().len());
        self.screen.note(&format!("{turns} from {}, {}", path.display(), show::usage(&mut self.conversation)));
        Ok(())
    }

    /// Does something that may have to read tokens again.
    fn waiting<T>(&mut self, work: impl FnOnce(&mut Conversation<'m>, &Watch<'_>) -> Result<T>) -> Result<T> {
        let bar = self.screen.bar();
        work(&mut self.conversation, &Watch { cancel: &self.cancel, progress: &|done, total| bar.show(done, total) })
    }

    /// Shows the reply to what `send` sends.
    fn stream_reply(
        &mut self,
        send: impl FnOnce(&mut Conversation<'m>, &mut ReplySink<'_>) -> Result<Reply>,
    ) -> anyhow::Result<()> {
        let mut writer = self.screen.reply();
        // To the conversation, every failure of the output is a reader that went away: what was said till then stays.
        let mut lost = None;
        let done = {
            let bar = self.screen.bar();
            let watch = Watch { cancel: &self.cancel, progress: &|done, total| bar.show(done, total) };
            let mut text = |text: &str| {
                writer.write(text).map_err(|e| {
                    lost = Some(e);
                    io::ErrorKind::BrokenPipe.into()
                })
            };
            send(&mut self.conversation, &mut ReplySink { watch, text: &mut text })
        };
        let Reply { generation, dropped } = match done {
            Err(e) => {
                writer.finish()?;
                return Err(e.into());
            }
            Ok(reply) => reply,
        };
        if let Some(e) = lost {
            return Err(anyhow::Error::new(e).context("cannot write the text"));
        }
        writer.finish()?;
        self.last = Some(generation.timings);
        self.tell(&generation.timings, generation.stop, dropped);
        if generation.stop == StopReason::Interrupted && !self.screen.terminal {
            return Err(Error::Cancelled.into());
        }
        Ok(())
    }

    /// Says what is worth knowing after a reply.
    fn tell(&mut self, timings: &Timings, stop: StopReason, dropped: usize) {
        if let Some(why) = self.conversation.timeline().fallback_reason() {
            self.screen.warn(&terminal::instead(why));
        }
        let usage = show::usage(&mut self.conversation);
        let at_the_end = show::at_the_end(&self.conversation);
        let stopped = if stop == StopReason::Interrupted { "stopped | " } else { "" };
        self.screen.small(&format!("{stopped}{usage} | {:.1} tok/s", timings.decode_rate()));
        if dropped > 0 {
            let were = if dropped == 1 { "turn was" } else { &*format!("{dropped} turns were") };
            self.screen.warn(&format!("the context was full: the oldest {were} dropped"));
        }
        let (used, context) = (self.conversation.used(), self.conversation.timeline().context());
        let free = context.saturating_sub(used);
        let nearly_full = free < context / 10 || free < 2 * used.saturating_sub(self.used_before);
        self.used_before = used;
        if stop == StopReason::ContextFull {
            self.screen
                .warn("the context is full, the reply ends here; /undo, /clear, --overflow slide or -c make room");
        } else if nearly_full && !self.announced {
            self.screen.warn(&format!("the context is nearly full, {usage}; at its end {at_the_end}"));
        }
        self.announced = nearly_full;
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = terminal::out();
    out.write_all(text.as_bytes())?;
    out.flush()
}
