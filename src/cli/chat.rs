//! `hymba chat`: a conversation, at a terminal or through a pipe.

pub mod commands;
mod editor;
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
        conversation::{Options, Overflow},
    },
    format::check_writable,
    sample::{Sampler, SamplingParams},
    text::{StopMatcher, Template, Tokenizer},
};

use super::{
    escape::EscapeArgs,
    model::ModelArgs,
    options::{SamplingArgs, SessionArgs, count, list_devices},
    prompt, terminal,
    usage::Usage,
};
use input::Input;
use repl::Repl;
use screen::{ColorChoice, Screen};

/// Talk with a model.
///
/// At a terminal, lines are edited with the arrow keys, kept from one run to the next, and searched with Ctrl-R; `/help`
/// lists the commands. Ctrl-C stops a reply, Ctrl-D leaves. From a pipe, each line is a message, and only the replies
/// come out.
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
    /// Write the conversation to FILE when leaving
    #[arg(long, value_name = "FILE")]
    save_on_exit: Option<PathBuf>,
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
    args.save_on_exit.as_deref().map(check_writable).transpose()?; // not when all is said
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let model = args.model.open(args.quiet)?;
    let tokenizer = model.tokenizer()?;
    let params = args.sampling.apply(model.sampling()?)?;
    let sampler = Sampler::new(params, args.sampling.seed()?);
    let session = args.session.open(&model, args.quiet)?;
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
        Input::pipe(first.filter(|&message| message != "-").map(Into::into), cancel.clone())?
    };
    let left = repl.run(&mut input);
    if let Some(path) = args.save_on_exit.as_deref().filter(|_| !matches!(left, Err(ref e) if !is_cancelled(e))) {
        repl.save(path)?;
    }
    left
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|e| matches!(e, Error::Cancelled))
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
