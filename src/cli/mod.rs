//! The command line: one file per command; shared flags are in [`options`], [`model`] and [`prompt`].

pub mod ask;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod config;
mod constraint;
pub mod escape;
pub mod eval;
pub mod hints;
pub mod inspect;
pub mod json;
pub mod load;
pub mod man;
pub mod model;
pub mod models;
pub mod named;
pub mod options;
pub mod progress;
pub mod prompt;
pub mod pull;
pub mod quantize;
pub mod run;
#[cfg_attr(not(feature = "serve"), path = "serve_off.rs")]
pub mod serve;
pub mod settings;
pub mod signals;
pub mod speculate;
pub mod terminal;
pub mod tools;
pub mod usage;
pub mod wording;
pub mod wrap;

use std::{
    env,
    ffi::{OsStr, OsString},
    sync::{Arc, atomic::AtomicBool},
};

use clap::{CommandFactory, FromArgMatches};
use hymba::backend::{Cpu, KERNELS};
use options::SamplingArgs;
use settings::Setting;
use usage::Usage;

/// Run NVIDIA's Hymba language models on this machine.
#[derive(clap::Parser)]
#[command(
    version,
    args_override_self = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  hymba run \"Once upon a time\"
  hymba chat
  hymba serve
  hymba pull nvidia/Hymba-1.5B-Instruct
  hymba chat -m nvidia/Hymba-1.5B-Instruct
  hymba quantize path/to/Hymba-1.5B-Base hymba-1.5b-q4.gguf
  hymba run -m hymba-1.5b-q4.gguf -n 200 \"The capital of France is\"
  hymba help run"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand)]
pub enum Command {
    Run(run::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Pull(pull::Args),
    Models(models::Args),
    Quantize(quantize::Args),
    Inspect(inspect::Args),
    Eval(eval::Args),
    Bench(bench::Args),
    Config(config::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Cli {
    /// Parses the command line, with settings from the environment and the configuration file.
    pub fn of_process() -> Result<Self, clap::Error> {
        let line: Vec<_> = env::args_os().collect();
        match settings::read() {
            Ok(settings) => Self::of(line.clone(), &settings)
                .map_err(|e| settings::attribute_error(e, &settings, |some| Self::of(line.clone(), some).map(drop))),
            // Commands that need no settings, such as help, still work, and `config` shows what it can.
            Err(reason) => match Self::of(line, &[])? {
                cli @ Self { command: Command::Completions(_) | Command::Man(_) | Command::Config(_) } => Ok(cli),
                _ => Err(settings::invalid(reason)),
            },
        }
    }

    fn of(mut line: Vec<OsString>, settings: &[Setting]) -> Result<Self, clap::Error> {
        // llama.cpp's multi-letter flags with one dash, which clap would split into single-letter flags.
        let rewritten: &[(&str, &str)] = match line.get(1).and_then(|command| command.to_str()) {
            Some("chat") => &[("-st", "--single-turn"), ("-sys", "--system")],
            Some("run") => &[("-sys", "--system")],
            _ => &[],
        };
        for argument in &mut line {
            if let Some((_, long)) = rewritten.iter().find(|(short, _)| argument == short) {
                *argument = (*long).into();
            }
        }
        let mut command = settings::apply(Self::command(), settings);
        // Otherwise a misspelled flag would be parsed as the prompt.
        if line.iter().any(|argument| is_text(argument)) {
            for (name, text) in [("run", "text"), ("chat", "message")] {
                command = command.mut_subcommand(name, |c| c.mut_arg(text, |arg| arg.allow_hyphen_values(true)));
            }
        }
        let matches = command.try_get_matches_from_mut(line)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        if let (Some(sampling), Some((_, flags))) = (cli.command.sampling_mut(), matches.subcommand()) {
            sampling.settings = settings::effective(settings, flags);
        }
        Ok(cli)
    }
}

/// Whether an argument starts with a dash but cannot be a flag.
fn is_text(argument: &OsStr) -> bool {
    let Some(rest) = argument.to_str().and_then(|argument| argument.strip_prefix('-')) else { return false };
    rest.split('=').next().is_some_and(|name| name.contains(char::is_whitespace))
}

/// Rejects kernels that this CPU does not support.
fn check_environment() -> Result<(), Usage> {
    let Some(wanted) = env::var_os(KERNELS).filter(|wanted| !wanted.is_empty()) else { return Ok(()) };
    let known = Cpu::all_kernels();
    if known.iter().any(|&known| wanted == known) {
        return Ok(());
    }
    let wanted = wanted.to_string_lossy();
    Err(Usage(format!("{KERNELS}={wanted}: unknown or unsupported kernels; available: {}", known.join(", "))))
}

impl Command {
    /// Whether it writes to standard output.
    pub fn writes_output(&self) -> bool {
        match self {
            Self::Pull(args) => args.writes_output(),
            Self::Quantize(args) => args.writes_output(),
            Self::Eval(args) => args.writes_output(),
            Self::Man(_) => false,
            _ => true,
        }
    }

    fn sampling_mut(&mut self) -> Option<&mut SamplingArgs> {
        match self {
            Self::Run(args) => Some(&mut args.sampling),
            Self::Chat(args) => Some(&mut args.sampling),
            #[cfg(feature = "serve")]
            Self::Serve(args) => Some(&mut args.sampling),
            _ => None,
        }
    }

    pub fn run(&self, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
        check_environment()?;
        match self {
            Self::Run(args) => run::run(args, cancel),
            Self::Chat(args) => chat::run(args, cancel),
            Self::Serve(args) => serve::run(args, cancel),
            Self::Pull(args) => pull::run(args, cancel),
            Self::Models(args) => models::run(args),
            Self::Quantize(args) => quantize::run(args, cancel),
            Self::Inspect(args) => inspect::run(args, cancel),
            Self::Eval(args) => eval::run(args, cancel),
            Self::Bench(args) => bench::run(args, cancel),
            Self::Config(_) => config::run(),
            Self::Completions(args) => completions::run(args, Cli::command()),
            Self::Man(args) => man::run(args, Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::of(["hymba"].iter().chain(line).map(Into::into).collect(), &[])
    }

    #[test]
    fn the_flag_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_text_may_start_with_a_dash() {
        for line in [
            &["run", "- an item", "-n", "3"][..],
            &["run", "-n", "3", "--hm, a text", "-q"],
            &["run", "-p", "- an item", "--stop", "- ", "--stop", "-", "-q"],
            &["run", "-p", "--", "--stop", "---"],
            &["chat", "- an item", "-st", "--system", "-be brief", "--chat-template", "-{{ messages }}"],
            &["chat", "-p", "-5 degrees?"],
        ] {
            assert!(parse(line).is_ok(), "{line:?}: {}", parse(line).err().unwrap());
        }
        let Command::Run(args) = parse(&["run", "- an item", "-n", "3"]).ok().unwrap().command else {
            panic!("not run")
        };
        assert!(format!("{args:?}").contains("text: Some(\"- an item\")"), "{args:?}");
        for line in
            [&["run", "--quite"][..], &["run", "a text", "-x"], &["chat", "--sytem=a b"], &["run", "a", "- an item"]]
        {
            assert_eq!(parse(line).err().map(|e| e.kind()), Some(ErrorKind::UnknownArgument), "{line:?}");
        }
    }

    #[test]
    fn the_last_of_repeated_flags_wins() {
        let line = [
            "run", "-q", "-q", "-n", "3", "-p", "a", "--seed", "1", "-n", "5", "-p", "b", "--seed", "2", "--stop", "c",
            "--stop", "d",
        ];
        let Command::Run(args) = parse(&line).ok().unwrap().command else { panic!("not run") };
        let args = format!("{args:?}");
        for part in ["predict: Some(Limit(Some(5)))", "prompt: Some(\"b\")", "seed: Some(2)", "stop: [\"c\", \"d\"]"] {
            assert!(args.contains(part), "{part} is missing in {args}");
        }
        assert!(parse(&["quantize", "--type", "q4_0", "a", "b", "--type", "q8_0"]).is_ok());
        assert!(parse(&["eval", "perplexity", "-c", "8", "a", "-c", "9"]).is_ok());
    }
}
