//! `hymba man`: the manual pages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use hymba::format::{Privacy, write_atomically};

/// Write the manual pages to a folder.
///
/// Writes hymba.1 and one page per command (hymba-run.1, ...), replacing existing pages.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hymba man ~/.local/share/man/man1")]
pub struct Args {
    /// Output folder; created if missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the pages of `program`.
pub fn run(args: &Args, program: Command) -> anyhow::Result<()> {
    fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {}", args.folder.display()))?;
    let mut command = program.disable_help_subcommand(true);
    command.build();
    pages(&command, &args.folder)
}

fn pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let man = Man::new(command.clone());
    let path = folder.join(man.get_filename());
    let mut page = Vec::new();
    man.render(&mut page)?;
    write_atomically(&path, true, Privacy::Shared, |out| out.write_all(&page))?;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| pages(sub, folder))
}
