//! The command line: one file a command; flags that several share are in [`options`], [`model`] and [`prompt`].

pub mod bench;
pub mod chat;
pub mod eval;
pub mod hints;
pub mod inspect;
pub mod model;
pub mod options;
pub mod prompt;
pub mod quantize;
pub mod run;
pub mod terminal;
pub mod usage;

use std::{
    env,
    ffi::OsString,
    sync::{Arc, atomic::AtomicBool},
};

/// Run NVIDIA's Hymba language models on this machine.
#[derive(clap::Parser)]
#[command(
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Examples:
  hymba run \"Once upon a time\"
  hymba chat
  hymba quantize path/to/Hymba-1.5B-Base hymba-1.5b-q4_0.gguf --type q4_0
  hymba run -m hymba-1.5b-q4_0.gguf -n 200 \"The capital of France is\"
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
    Quantize(quantize::Args),
    Inspect(inspect::Args),
    Eval(eval::Args),
    Bench(bench::Args),
}

/// The command line. `hymba chat -st` is llama.cpp's way to ask for a single turn; for the parser that would be two flags
/// of one letter.
pub fn arguments() -> impl Iterator<Item = OsString> {
    let chat = env::args_os().nth(1).is_some_and(|command| command == "chat");
    env::args_os().map(move |argument| if chat && argument == "-st" { "--single-turn".into() } else { argument })
}

impl Command {
    pub fn run(&self, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => run::run(args, cancel),
            Self::Chat(args) => chat::run(args, cancel),
            Self::Quantize(args) => quantize::run(args, cancel),
            Self::Inspect(args) => inspect::run(args, cancel),
            Self::Eval(args) => eval::run(args, cancel),
            Self::Bench(args) => bench::run(args, cancel),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_flags_fit_together() {
        super::Cli::command().debug_assert();
    }
}
