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

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use clap::{ValueEnum, builder::NonEmptyStringValueParser, value_parser};
use hymba::{
    Error,
    engine::{
        Conversation, Model, Timeline,
        conversation::{Kind, Options, Overflow, check_replaceable},
    },
    format::check_writable,
    sample::{Sampler, SamplingParams},
    text::{StopMatcher, Template, Tokenizer},
};

use super::{
    escape::EscapeArgs,
    hints::Place,
    model::ModelArgs,
    options::{SamplingArgs, SessionArgs, count, list_devices},
    prompt, terminal,
    usage::{Reported, Usage},
};
use guard::guarded;
use input::Input;
use repl::Repl;
use screen::{ColorChoice, Screen};

/// Talk with a model.
///
/// At a terminal, lines are edited with the arrow keys, kept from one run to the next, and searched with Ctrl-R; `/help`
/// lists the commands. Ctrl-C stops a reply, Ctrl-D leaves. From a pipe, each line is a message, whatever it begins with,
/// and only the replies come out.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba chat
  hymba chat -m hymba-1.5b-instruct.gguf --system \"Answer in one sentence.\"
  hymba chat -st -q \"Tell me a story\" > story.txt
  hymba chat --resume talk.session --save-on-exit talk.session")]
pub struct Args {
    /// The first message
    #[arg(value_name = "MESSAGE", conflicts_with = "prompt")]
    message: Option<String>,
    /// The same as MESSAGE
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// One turn only: leave after the reply (also: -st)
    #[arg(long)]
    single_turn: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// What the model should be: a text that comes before all messages
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "system_file")]
    system: Option<String>,
    /// Read the system text from a file
    #[arg(long, value_name = "FILE")]
    system_file: Option<PathBuf>,
    /// Chat template (Jinja), in place of the model's; `none`: messages and replies are one running text
    #[arg(long, value_name = "JINJA", allow_hyphen_values = true, conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// Read the chat template from a file
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// Go on with the conversation in FILE, which /save or --save-on-exit wrote
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Write the conversation to FILE when leaving, whatever the reason
    #[arg(long, value_name = "FILE")]
    save_on_exit: Option<PathBuf>,
    /// Write the --save-on-exit file even where FILE holds something else; never over a model
    #[arg(long)]
    force: bool,
    /// Take lines of a pipe that begin with a slash for commands, as at a terminal
    #[arg(long)]
    commands: bool,
    /// Tokens of a reply at most; -1: until the model ends it or the context is full
    #[arg(short = 'n', long, value_name = "N", default_value = "-1", allow_negative_numbers = true,
          value_parser = value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    predict: i64,
    /// End a reply where STRING appears, which is not shown; may be given several times
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    escape: EscapeArgs,
    /// At the end of the context: stop the reply, or drop the oldest turns and read the others again
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    overflow: OverflowChoice,
    /// Megabytes of memory for checkpoints that /undo, /regen and /switch go back to at once
    #[arg(long, value_name = "MB", default_value = "256", value_parser = count().range(0..=1 << 30))]
    undo_memory: usize,
    /// Colours and light Markdown
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    /// Say neither which model is used nor how fast it was
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// [`Overflow`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverflowChoice {
    Stop,
    Slide,
}

/// Talks until the person leaves.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.session.list_devices {
        return Ok(list_devices()?);
    }
    args.sampling.apply(SamplingParams::default())?;
    let stops = args.escape.stops(&args.stop, args.quiet)?;
    StopMatcher::new(&stops).map_err(|e| Usage(format!("--stop: {e}")))?;
    if let Some(path) = &args.save_on_exit {
        // Not when all is said.
        check_writable(path)?;
        check_replaceable(path, Kind::Chat, args.force)?;
    }
    let typed = io::stdin().is_terminal();
    let terminal = typed && io::stdout().is_terminal();
    let model = args.model.open(args.quiet)?;
    let tokenizer = model.tokenizer_until(cancel)?;
    if args.save_on_exit.is_some() {
        model.start_fingerprint(); // of the file as it is now, whatever becomes of it
    }
    let params = args.sampling.of_model(&model, args.quiet)?;
    let sampler = Sampler::new(params, args.sampling.seed()?);
    let session = args.session.open(&model, args.quiet, cancel)?;
    let undo_memory = args.undo_memory.saturating_mul(1_000_000);
    let timeline = Timeline::new(session, undo_memory);
    let system = match &args.system_file {
        Some(path) => Some(prompt::read_file(path, cancel)?),
        None => args.system.as_ref().map(|text| args.escape.text("--system", text)).transpose()?,
    };
    let options = Options {
        template: template(args, &model, &tokenizer, cancel)?,
        system: system.clone(),
        limit: usize::try_from(args.predict).ok(),
        stops,
        overflow: match args.overflow {
            OverflowChoice::Stop => Overflow::Stop,
            OverflowChoice::Slide => Overflow::Slide,
        },
    };
    let conversation = Conversation::new(timeline, &tokenizer, sampler, options)?;
    let screen = Screen::new(args.color, terminal, args.quiet);
    let mut repl = Repl::new(conversation, model.file(), screen, cancel, keeps_template(args), undo_memory);
    if let Some(path) = &args.resume {
        repl.load(path)?;
        let params = args.sampling.apply(repl.conversation().sampler().params().clone())?;
        repl.conversation().sampler().set_params(params);
        if let Some(seed) = args.sampling.seed {
            repl.conversation().sampler().set_seed(seed);
        }
        if system.is_some() {
            repl.set_system(system.as_deref())?;
        }
    }

    let first = args.message.as_ref().or(args.prompt.as_ref());
    let first = first.map(|text| args.escape.text("the message", text)).transpose()?;
    let first = first.as_deref();
    let mut input = if args.single_turn {
        let message = match first {
            Some("-") | None if !terminal => prompt::standard_input(cancel)?,
            Some(message) => message.into(),
            None => return Err(Usage("-st needs a message: hymba chat -st \"Hello\"".into()).into()),
        };
        Input::once(message)
    } else if terminal {
        repl.greet();
        Input::terminal(first.map(Into::into), cancel)?
    } else {
        Input::pipe(first.filter(|&message| message != "-").map(Into::into), args.commands || typed, cancel.clone())?
    };
    let left = guarded(|| repl.run(&mut input));
    leave(&mut repl, args, left)
}

/// Saves the conversation, whatever it was that ended it: an error, or a panic that was told already.
fn leave(repl: &mut Repl<'_>, args: &Args, left: Result<anyhow::Result<()>, Reported>) -> anyhow::Result<()> {
    let panicked = left.is_err();
    let left = left.unwrap_or_else(|told| Err(told.into()));
    let Some(path) = &args.save_on_exit else { return left };
    let empty = args.resume.is_none() && repl.conversation().is_empty();
    if left.is_err() && empty && path.exists() {
        return left; // nothing is no reason to replace an earlier conversation
    }
    let saved = guarded(|| {
        if panicked {
            repl.forget_state()?;
        }
        repl.save(path, args.force, &AtomicBool::new(false)) // also when a signal ended the conversation
    });
    match saved {
        Ok(Ok(())) => left,
        Ok(Err(e)) => {
            tell(left);
            Err(anyhow::Error::from(e).context("the conversation is not saved"))
        }
        Err(told) => Err(told.into()),
    }
}

/// Says why the conversation ended, if that is an error, when another is to be told too.
fn tell(left: anyhow::Result<()>) {
    let Err(e) = left else { return };
    let cancelled = e.downcast_ref().is_some_and(|e| matches!(e, Error::Cancelled));
    if !cancelled && !e.is::<Reported>() && !terminal::is_broken_pipe(&e) {
        terminal::note(&terminal::one_line(&e, Place::CommandLine));
    }
}

fn keeps_template(args: &Args) -> bool {
    args.chat_template.is_some() || args.chat_template_file.is_some()
}

/// Returns the chat template that the flags or the model file name.
fn template(
    args: &Args,
    model: &Model,
    tokenizer: &Tokenizer,
    cancel: &AtomicBool,
) -> anyhow::Result<Option<Template>> {
    let (source, origin) = match (&args.chat_template, &args.chat_template_file) {
        (Some(text), _) if text == "none" => return Ok(None),
        (Some(text), _) => (text.clone(), "--chat-template".to_owned()),
        (None, Some(path)) => (prompt::read_whole(path, cancel)?, path.display().to_string()),
        (None, None) => {
            let template = model.chat_template(tokenizer)?;
            if template.is_none() && !args.quiet {
                terminal::note(
                    "this model has no chat template: messages and replies are one running text that it continues",
                );
            }
            return Ok(template);
        }
    };
    Ok(Some(tokenizer.template(&source, &origin)?))
}
