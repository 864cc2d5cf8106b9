//! Which model a command works with: the one named with -m, else the environment's, else the one in this program.

use std::{env, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Context;
use hymba::{
    engine::Model,
    format::{Blob, gguf::Gguf},
};

use super::{load::load, terminal, usage::Usage};

const VARIABLE: &str = "HYMBA_MODEL";

/// The demo checkpoint that is part of this program; empty if it was built without.
#[cfg(feature = "embedded-demo")]
pub static EMBEDDED: &[u8] = {
    /// As a memory map would be, so that tensors lie on cache lines.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/hymba-demo.gguf"));
    &DEMO.0
};
#[cfg(not(feature = "embedded-demo"))]
pub static EMBEDDED: &[u8] = &[];

/// The model flag.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Model file (GGUF) [default: $HYMBA_MODEL, else the built-in demo]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

/// A model to open.
enum Source {
    Flag(PathBuf),
    Variable(PathBuf),
    Embedded,
}

/// What that model is and is not, in a line.
pub const DEMO: &str = "The demo is a toy of 48 million parameters: it tells simple stories and chats a little; it knows few facts \
and makes others up.";

/// What messages call the model that is part of this program.
pub const EMBEDDED_NAME: &str = "the built-in demo";

impl ModelArgs {
    /// Opens the model; says which one it is, unless `quiet` or named by the flag. A file that is not in memory yet is read,
    /// which `cancel` ends.
    pub fn open(&self, quiet: bool, cancel: &AtomicBool) -> anyhow::Result<Model> {
        match self.source(quiet)? {
            Source::Flag(path) => {
                load(&path, quiet, cancel)?;
                Ok(Model::open(path)?)
            }
            Source::Variable(path) => {
                load(&path, quiet, cancel)?;
                Model::open(path).context(VARIABLE)
            }
            Source::Embedded => Ok(Model::from_static(EMBEDDED_NAME, EMBEDDED)?),
        }
    }

    /// Opens the model's file as such.
    pub fn gguf(&self, quiet: bool) -> anyhow::Result<Gguf> {
        match self.source(quiet)? {
            Source::Flag(path) => Ok(Gguf::open(&path)?),
            Source::Variable(path) => Gguf::open(&path).context(VARIABLE),
            Source::Embedded => Ok(Gguf::parse(EMBEDDED_NAME, Blob::from_static(EMBEDDED))?),
        }
    }

    fn source(&self, quiet: bool) -> Result<Source, Usage> {
        if let Some(path) = &self.model {
            return Ok(Source::Flag(path.clone()));
        }
        let say = |message: String| {
            if !quiet {
                terminal::note(&message);
            }
        };
        if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            say(format!("using {} (from {VARIABLE})", path.display()));
            return Ok(Source::Variable(path));
        }
        if EMBEDDED.is_empty() {
            let what = format!("this hymba has no built-in model; name a model file with -m FILE or in {VARIABLE}");
            return Err(Usage(what));
        }
        say(format!("no model given (-m or {VARIABLE}); using the built-in demo"));
        Ok(Source::Embedded)
    }
}
