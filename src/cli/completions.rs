//! `hymba completions`: what a shell needs to complete a command line.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba completions bash > ~/.local/share/bash-completion/completions/hymba
  hymba completions zsh > \"${fpath[1]}/_hymba\"
  hymba completions fish > ~/.config/fish/completions/hymba.fish")]
pub struct Args {
    /// Shell to complete for
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hymba", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
