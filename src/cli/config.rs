//! `hymba config`: effective settings.

use std::io::Write;

use super::{settings, terminal, usage::Usage};

/// Show the effective settings and where each comes from.
///
/// A setting is a flag that can also be given as an environment variable (HYMBA_CONTEXT, HYMBA_TOP_K, ...) or in the
/// configuration file, under the name of the flag. Flags override variables, and variables override the file.
/// HYMBA_CONFIG names another file, which must exist; if it is empty, no file is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example of a configuration file:
  model = \"~/models/hymba-1.5b-q4_0.gguf\"
  context = 4096
  temp = 0.7")]
pub struct Args {}

/// Runs the command.
pub fn run() -> anyhow::Result<()> {
    let settings = settings::read_existing().map_err(Usage)?;
    let mut out = terminal::out();
    match settings::file() {
        Some(path) if path.exists() => writeln!(out, "# {}", path.display())?,
        Some(path) => writeln!(out, "# {} (no such file)", path.display())?,
        None => writeln!(out, "# no configuration file")?,
    }
    for name in settings::NAMES {
        match settings.iter().find(|setting| setting.name == name) {
            Some(setting) => {
                writeln!(out, "{name} = {}  # {}", setting.value.display(), setting.origin.name())?;
            }
            None => writeln!(out, "# {name}: default ({})", settings::variable(name))?,
        }
    }
    Ok(())
}
