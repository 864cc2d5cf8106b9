//! Which model a command works with: the one named with -m, else the environment's, else the one in this program.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context;
use hymba::engine::Model;

use super::{terminal, usage::Usage};

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
    /// Model file (GGUF) [default: $HYMBA_MODEL, else the built-in demo]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the model; says which one it is, unless `quiet` or named by the flag.
    pub fn open(&self, quiet: bool) -> anyhow::Result<Model> {
        if let Some(path) = &self.model {
            return Ok(Model::open(path)?);
        }
        let say = |message: String| {
            if !quiet {
                terminal::note(&message);
            }
        };
        if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            let path = Path::new(&path);
            say(format!("using {}, as {VARIABLE} says", path.display()));
            return Model::open(path).context(VARIABLE);
        }
        if EMBEDDED.is_empty() {
            let what = format!(
                "this hymba has no built-in model; name a model file with -m FILE or in {VARIABLE} (`hymba quantize` makes one of a Hugging Face folder)"
            );
            return Err(Usage(what).into());
        }
        say(format!("using the built-in demo model, as neither -m nor {VARIABLE} names another"));
        Ok(Model::from_static("the built-in demo", EMBEDDED)?)
    }
}
