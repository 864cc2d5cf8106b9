//! Model selection: -m, else HYMBA_MODEL, else the built-in demo.

use std::{env, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Context;
use hymba::{
    engine::Model,
    format::{Blob, gguf::Gguf},
};

use super::{load::load, named::resolve, terminal, usage::Usage};

const VARIABLE: &str = "HYMBA_MODEL";

/// The built-in demo checkpoint; empty if built without it.
#[cfg(embedded_demo)]
pub static EMBEDDED: &[u8] = {
    /// Aligned like a memory map, so that tensors start on cache lines.
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
    /// Model: a GGUF file, or a name as in `hymba models` or `hymba pull` [default: $HYMBA_MODEL, else the built-in
    /// demo]
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<PathBuf>,
}

/// A model to open.
enum Source {
    Flag(PathBuf),
    Variable(PathBuf),
    Embedded,
}

/// A note on which model is used, if one is due.
#[must_use]
pub struct Notice(Option<String>);

impl Notice {
    /// Prints it.
    pub fn show(self) {
        self.0.iter().for_each(|note| terminal::note(note));
    }
}

/// The official model.
pub const OFFICIAL: &str = "nvidia/Hymba-1.5B-Instruct";

/// One line on the demo's limits and how to get the official model.
pub const DEMO: &str = "The demo is a toy model with 48 million parameters: it tells simple stories, chats a little, and makes up most facts; get the official model with `hymba pull nvidia/Hymba-1.5B-Instruct`.";

/// The built-in model's name in messages.
pub const EMBEDDED_NAME: &str = "the built-in demo";

impl ModelArgs {
    /// Opens the model; notes which one it is, unless `quiet` or given by -m. A file that is not in the page cache is
    /// read first, until `cancel`.
    pub fn open(&self, quiet: bool, cancel: &AtomicBool) -> anyhow::Result<Model> {
        let source = self.source()?;
        source.notice(quiet).show();
        source.open(quiet, cancel)
    }

    /// Opens the model like [`Self::open`], and returns the note, to be shown after flags were checked that need the
    /// model for it.
    pub fn open_unannounced(&self, quiet: bool, cancel: &AtomicBool) -> anyhow::Result<(Model, Notice)> {
        let source = self.source()?;
        let notice = source.notice(quiet);
        Ok((source.open(quiet, cancel)?, notice))
    }

    /// Opens the model file as GGUF.
    pub fn gguf(&self, quiet: bool) -> anyhow::Result<Gguf> {
        let source = self.source()?;
        source.notice(quiet).show();
        match source {
            Source::Flag(path) => Ok(Gguf::open(&path)?),
            Source::Variable(path) => Gguf::open(&path).context(VARIABLE),
            Source::Embedded => Ok(Gguf::parse(EMBEDDED_NAME, Blob::from_static(EMBEDDED))?),
        }
    }

    fn source(&self) -> anyhow::Result<Source> {
        if let Some(path) = &self.model {
            return Ok(Source::Flag(resolve(path)?));
        }
        if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            return Ok(Source::Variable(resolve(&PathBuf::from(path)).context(VARIABLE)?));
        }
        if EMBEDDED.is_empty() {
            let problem = format!(
                "this build has no built-in model; use -m FILE or {VARIABLE} (`hymba pull` or `hymba quantize` creates a model file)"
            );
            return Err(Usage(problem).into());
        }
        Ok(Source::Embedded)
    }
}

impl Source {
    fn open(&self, quiet: bool, cancel: &AtomicBool) -> anyhow::Result<Model> {
        match self {
            Self::Flag(path) => {
                load(path, quiet, cancel)?;
                Ok(Model::open(path)?)
            }
            Self::Variable(path) => {
                load(path, quiet, cancel)?;
                Model::open(path).context(VARIABLE)
            }
            Self::Embedded => Ok(Model::from_static(EMBEDDED_NAME, EMBEDDED)?),
        }
    }

    fn notice(&self, quiet: bool) -> Notice {
        Notice(match self {
            _ if quiet => None,
            Self::Flag(_) => None,
            Self::Variable(path) => Some(format!("using {} (from {VARIABLE})", path.display())),
            Self::Embedded => Some(format!(
                "no model given (-m or {VARIABLE}); using the built-in demo; get the official model with `hymba pull {OFFICIAL}`"
            )),
        })
    }
}
