//! `hymba chat`: a conversation, at a terminal or through a pipe.

pub mod commands;
mod editor;
mod guard;
mod input;
mod markdown;
mod message;
mod repl;
mod screen;
mod show;
mod templates;

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use clap::{ValueEnum, builder::NonEmptyStringValueParser};
use hymba::{
    Error,
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline,
        conversation::{Kind, Options, Overflow, check_replaceable},
    },
    format::check_writable,
    sample::{Sampler, SamplingParams},
    text::{StopMatcher, Template, Tokenizer},
};

use super::{
    constraint::{self, ConstraintArgs},
    escape::EscapeArgs,
    hints::Interface,
    model::{DEMO, EMBEDDED_NAME, ModelArgs},
    options::{Limit, REPLY_LIMIT, SamplingArgs, SessionArgs, count, limit, list_devices},
    prompt::{self, StdinArgs},
    speculate::SpeculateArgs,
    terminal,
    tools::{self, ToolArgs},
    usage::{Reported, Usage, output_file},
};
use guard::guarded;
use input::Input;
use repl::{Repl, Setup};
use screen::{ColorChoice, Screen};

/// Chat with a model.
///
/// At a terminal: line editing, persistent history, Ctrl-R search; `/help` lists the commands. Ctrl-C stops a reply, Ctrl-D
/// exits. From a pipe, each line is a message, whatever it begins with, and only the replies are printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba chat
  hymba chat -m hymba-1.5b-instruct.gguf --system \"Answer in one sentence.\"
  hymba chat -st -q \"Tell me a story\" > story.txt
  cat article.txt | hymba chat -st \"Summarize this text:\"
  hymba chat --session talk.session
  hymba chat --tools tools.json --tool-command ./answer")]
pub struct Args {
    /// First message
    #[arg(value_name = "MESSAGE", conflicts_with = "prompt")]
    message: Option<String>,
    /// First message (alternative to the positional argument)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Exit after one reply (also: -st). Piped input is appended to MESSAGE after a blank line
    #[arg(long)]
    single_turn: bool,
    #[command(flatten)]
    stdin: StdinArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// System prompt
    #[arg(
        long,
        alias = "system-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "system_file"
    )]
    system: Option<String>,
    /// Read the system prompt from a file
    #[arg(long, value_name = "FILE")]
    system_file: Option<PathBuf>,
    /// Override the chat template: Jinja source, chatml, hymba, llama3, llama2, gemma, phi3, zephyr or vicuna; `none`:
    /// no template (plain continuation)
    #[arg(long, value_name = "NAME|JINJA", allow_hyphen_values = true, conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// Read the chat template from a file
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// Parse special tokens and template markers in messages (`</s>`, `<extra_id_1>`) instead of reading them as text
    #[arg(long)]
    parse_special: bool,
    /// Resume the conversation in FILE if it exists; save it to FILE on exit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["resume", "save_on_exit"])]
    session: Option<PathBuf>,
    /// Resume the conversation saved in FILE
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Save the conversation to FILE on exit, whatever the reason
    #[arg(long, value_name = "FILE")]
    save_on_exit: Option<PathBuf>,
    /// Replace a --session or --save-on-exit file of another kind; model files are never replaced
    #[arg(long)]
    force: bool,
    /// Run piped lines that begin with a slash as commands, as at a terminal
    #[arg(long)]
    commands: bool,
    /// Maximum number of tokens per reply (-1: no limit) [default: the model file's, else 512]
    #[arg(short = 'n', long, aliases = ["n-predict", "max-tokens"], value_name = "N", allow_negative_numbers = true,
          value_parser = limit)]
    predict: Option<Limit>,
    /// Stop a reply at STRING (not printed); repeatable
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    escape: EscapeArgs,
    /// When the context is full: stop, or drop the oldest turns and reprocess the rest
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    overflow: OverflowChoice,
    /// Memory for undo checkpoints, in MB
    #[arg(long, value_name = "MB", default_value = "256", value_parser = count(0..=1 << 30))]
    undo_memory: usize,
    /// When to use colors and Markdown styling
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    /// Print events as they happen, one JSON object per line
    #[arg(long)]
    jsonl: bool,
    /// Suppress the model notice and the timing summary
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    constraint: ConstraintArgs,
    #[command(flatten)]
    tools: ToolArgs,
    #[command(flatten)]
    runtime: SessionArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// [`Overflow`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverflowChoice {
    Stop,
    Slide,
}

impl Args {
    /// Returns the file to resume from, if any.
    fn resumed(&self) -> Option<&Path> {
        // A file of another kind that --force replaces is not resumed.
        let replaces = |path: &Path| self.force && check_replaceable(path, Kind::Chat, false).is_err();
        let session = self.session.as_deref().filter(|path| path.exists() && !replaces(path));
        self.resume.as_deref().or(session)
    }

    /// Returns the file to save to on exit, if any.
    fn saved(&self) -> Option<&Path> {
        self.save_on_exit.as_deref().or(self.session.as_deref())
    }

    /// Checks the flags before any slow work starts.
    fn check(&self) -> anyhow::Result<()> {
        self.sampling.apply(SamplingParams::default())?;
        match self.saved() {
            Some(path) => {
                output_file("--session and --save-on-exit", path)?;
                check_writable(path)?;
                Ok(check_replaceable(path, Kind::Chat, self.force)?)
            }
            None if self.force => {
                Err(Usage("--force applies to --session or --save-on-exit; add one of them".into()).into())
            }
            None => Ok(()),
        }
    }
}

/// Runs the conversation until the user exits.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.runtime.list_devices {
        return Ok(list_devices()?);
    }
    args.check()?;
    let stops = args.escape.stops(&args.stop, args.quiet)?;
    StopMatcher::new(&stops).map_err(|e| Usage(format!("--stop: {e}")))?;
    let shape = args.constraint.shape(cancel)?;
    args.tools.check(shape.is_some())?;
    let (resources, answers) = (args.tools.read(cancel)?, args.tools.answers()?);
    let source = template_source(args, cancel)?;
    let system = match &args.system_file {
        Some(path) => Some(prompt::read_file(path, cancel)?),
        None => args.system.as_ref().map(|text| args.escape.text("--system", text)).transpose()?,
    };
    let typed = io::stdin().is_terminal();
    let terminal = typed && io::stdout().is_terminal() && !args.jsonl;
    let first = first_message(args, terminal, cancel)?;
    let (model, notice) = args.model.open_unannounced(args.quiet || terminal, cancel)?;
    let tokenizer = model.tokenizer_until(cancel)?;
    let compile = |(name, shape): (String, _)| constraint::compile(&name, &shape, &tokenizer, cancel);
    let constraint = shape.map(compile).transpose()?;
    notice.show();
    if args.saved().is_some() {
        model.start_fingerprint(); // hash the file as it is now: it may change later
    }
    let params = args.sampling.of_model(&model, args.quiet)?;
    let sampler = Sampler::new(params, args.sampling.seed()?);
    let session = args.runtime.open(&model, args.quiet, cancel)?;
    let undo_memory = args.undo_memory.saturating_mul(1_000_000);
    let timeline = Timeline::new(session, undo_memory);
    let limit = match args.predict {
        Some(Limit(limit)) => limit,
        None => Some(model.reply_limit()?.unwrap_or(REPLY_LIMIT)),
    };
    let options = Options {
        template: template(args, source, &model, &tokenizer)?,
        system: system.clone(),
        limit,
        stops,
        parse_special: args.parse_special,
        overflow: match args.overflow {
            OverflowChoice::Stop => Overflow::Stop,
            OverflowChoice::Slide => Overflow::Slide,
        },
        constraint,
        tools: resources.tools,
        tool_choice: resources.choice,
        contexts: resources.contexts,
    };
    let mut conversation = Conversation::new(timeline, &tokenizer, sampler, options).map_err(tools::of_flag)?;
    conversation.set_speculator(args.speculate.speculator(&tokenizer, cancel)?);
    let screen = Screen::new(args.color, terminal, args.quiet, args.jsonl);
    let open = |context| {
        let options = SessionOptions { context: Some(context), ..args.runtime.options() };
        Ok(Timeline::new(Session::new(&model, &options)?, undo_memory))
    };
    let setup = Setup {
        model: model.file().into(),
        about: (model.file() == EMBEDDED_NAME).then_some(DEMO),
        keep_template: keeps_template(args),
        undo_memory,
        default_limit: args.predict.is_none(),
        answers,
        open: Box::new(open),
    };
    let mut repl = Repl::new(conversation, setup, screen, cancel);
    let mut input = match first {
        First::Only(message) => Input::once(message),
        First::Typed(first) => {
            repl.greet();
            Input::terminal(first, screen.color, cancel)?
        }
        First::Piped(first) => {
            Input::pipe(first.filter(|message| message != "-"), args.commands || typed, cancel.clone())?
        }
    };
    if let Some(path) = args.resumed() {
        repl.load(path)?;
        let params = args.sampling.apply_flags(repl.conversation().sampler().params().clone())?;
        repl.conversation().sampler().set_params(params);
        if let Some(seed) = args.sampling.seed {
            repl.conversation().sampler().set_seed(seed);
        }
        if system.is_some() {
            repl.set_system(system.as_deref())?;
        }
    }
    let outcome = guarded(|| repl.run(&mut input));
    save_on_exit(&mut repl, args, outcome)
}

/// The first message, and where the others come from.
enum First {
    /// There are no others.
    Only(String),
    Typed(Option<String>),
    Piped(Option<String>),
}

fn first_message(args: &Args, terminal: bool, cancel: &AtomicBool) -> anyhow::Result<First> {
    let first = args.message.as_ref().or(args.prompt.as_ref());
    let first = first.map(|text| args.escape.text("the message", text)).transpose()?;
    if args.single_turn {
        let message = args.stdin.join(first, cancel)?;
        if message.is_empty() {
            return Err(Usage("-st requires a message, for example: hymba chat -st \"Hello\"".into()).into());
        }
        return Ok(First::Only(message));
    }
    if terminal {
        return Ok(First::Typed(first));
    }
    if args.stdin.is_off() {
        let message =
            first.ok_or_else(|| Usage("--no-stdin requires a message: hymba chat --no-stdin \"Hello\"".into()))?;
        return Ok(First::Only(message));
    }
    Ok(First::Piped(first))
}

/// Saves the conversation on exit, whatever ended it, including an error or a panic that was already reported.
fn save_on_exit(repl: &mut Repl<'_>, args: &Args, outcome: Result<anyhow::Result<()>, Reported>) -> anyhow::Result<()> {
    let panicked = outcome.is_err();
    let outcome = outcome.unwrap_or_else(|reported| Err(reported.into()));
    let Some(path) = args.saved() else { return outcome };
    let empty = args.resumed().is_none() && repl.conversation().is_empty();
    if outcome.is_err() && empty && path.exists() {
        return outcome; // an empty conversation does not replace an earlier one
    }
    let saved = guarded(|| {
        if panicked {
            repl.forget_state()?;
        }
        repl.save(path, args.force, &AtomicBool::new(false)) // a signal that ended the conversation must not cancel this
    });
    match saved {
        Ok(Ok(())) => outcome,
        Ok(Err(e)) => {
            report_error(outcome);
            Err(anyhow::Error::from(e).context("the conversation was not saved"))
        }
        Err(reported) => Err(reported.into()),
    }
}

/// Reports the error that ended the conversation when a second one follows.
fn report_error(outcome: anyhow::Result<()>) {
    let Err(e) = outcome else { return };
    let cancelled = e.downcast_ref().is_some_and(|e| matches!(e, Error::Cancelled));
    if !cancelled && !e.is::<Reported>() && !terminal::is_broken_pipe(&e) {
        terminal::error(&terminal::one_line(&e, Interface::CommandLine));
    }
}

fn keeps_template(args: &Args) -> bool {
    args.chat_template.is_some() || args.chat_template_file.is_some()
}

/// A chat template that the flags name.
enum TemplateSource {
    /// None is applied.
    Off,
    /// Jinja source, and its flag or file.
    Jinja(String, String),
}

/// Returns the chat template that the flags name, if they do. It is parsed only to check it: special tokens are those of
/// the model.
fn template_source(args: &Args, cancel: &AtomicBool) -> anyhow::Result<Option<TemplateSource>> {
    let (source, origin) = match (&args.chat_template, &args.chat_template_file) {
        (Some(text), _) if text == templates::NONE => return Ok(Some(TemplateSource::Off)),
        (Some(text), _) => (templates::source(text).to_owned(), "--chat-template".to_owned()),
        (None, Some(path)) => (prompt::read_text(path, cancel)?, path.display().to_string()),
        (None, None) => return Ok(None),
    };
    Template::new(&source, &origin, "", "")?;
    templates::check(&source, &origin).map_err(Usage)?;
    Ok(Some(TemplateSource::Jinja(source, origin)))
}

/// Returns the chat template: the one that the flags name, else the model's.
fn template(
    args: &Args,
    source: Option<TemplateSource>,
    model: &Model,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<Template>> {
    match source {
        Some(TemplateSource::Off) => return Ok(None),
        Some(TemplateSource::Jinja(source, origin)) => return Ok(Some(tokenizer.template(&source, &origin)?)),
        None => {}
    }
    let template = model.chat_template(tokenizer)?;
    if template.is_none() && !args.quiet {
        let has_system = args.system.is_some() || args.system_file.is_some();
        let system = if has_system { ", after the system prompt" } else { "" };
        terminal::warn(&format!(
            "the model has no chat template: messages and replies are continued as plain text{system}"
        ));
    }
    Ok(template)
}
