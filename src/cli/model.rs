//! Which model a command works with: the one named with -m, else the environment's, else the one in this program.

use std::{env, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Context;
use hymba::{
    engine::Model,
    format::{Blob, gguf::Gguf},
};

use super::{load::load, named::resolve, terminal, usage::Usage};

const VARIABLE: &str = "HYMBA_MODEL";

/// The demo checkpoint that is part of this program; empty if it was built without.
#[cfg(embedded_demo)]
pub static EMBEDDED: &[u8] = {
    /// As a memory map would be, so that tensors lie on cache lines.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    static DEMO: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/hymba-demo.gguf"));
    &DEMO.0
};
#[cfg(not(embedded_demo))]
pub static EMBEDDED: &[u8] = &[];

/// The model flag.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Model: a file (GGUF), or the name of one that `hymba models` lists or `hymba pull` gets [default: $HYMBA_MODEL, else
    /// the built-in demo]
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<PathBuf>,
}

/// A model to open.
enum Source {
    Flag(PathBuf),
    Variable(PathBuf),
    Embedded,
}

/// The model that this program is made for.
pub const REAL_ONE: &str = "nvidia/Hymba-1.5B-Instruct";

/// What the demo is and is not, and how to get the real one, in a line.
pub const DEMO: &str = "The demo is a toy of 48 million parameters: it tells simple stories and chats a little; it knows few facts \
and makes others up; `hymba pull nvidia/Hymba-1.5B-Instruct` gets the real one.";

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

    fn source(&self, quiet: bool) -> anyhow::Result<Source> {
        if let Some(path) = &self.model {
            return Ok(Source::Flag(resolve(path)?));
        }
        let say = |message: String| {
            if !quiet {
                terminal::note(&message);
            }
        };
        if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            let path = resolve(&PathBuf::from(path)).context(VARIABLE)?;
            say(format!("using {} (from {VARIABLE})", path.display()));
            return Ok(Source::Variable(path));
        }
        if EMBEDDED.is_empty() {
            let what = format!(
                "this hymba has no built-in model; name a model file with -m FILE or in {VARIABLE} (`hymba quantize` makes one of a Hugging Face folder)"
            );
            return Err(Usage(what).into());
        }
        say(format!(
            "no model given (-m or {VARIABLE}); using the built-in demo; `hymba pull {REAL_ONE}` gets the real one"
        ));
        Ok(Source::Embedded)
    }
}
