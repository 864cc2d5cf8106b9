//! `hymba completions`: shell completion scripts.

use std::io::Write;

use clap::Command;
use clap_complete::Shell;

use super::terminal;

/// Print the completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba completions bash > ~/.local/share/bash-completion/completions/hymba
  hymba completions zsh > \"${fpath[1]}/_hymba\"
  hymba completions fish > ~/.config/fish/completions/hymba.fish")]
pub struct Args {
    /// Shell
    shell: Shell,
}

/// Prints the completion script of `program`.
pub fn run(args: &Args, mut program: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "hymba", &mut script);
    Ok(terminal::out().write_all(&script)?)
}
