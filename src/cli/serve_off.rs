//! `hymba serve` in a program built without it.

use std::{
    ffi::OsString,
    sync::{Arc, atomic::AtomicBool},
};

/// Serve a model over HTTP (this program was built without it).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Explains how to get it.
pub fn run(_args: &Args, _cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    anyhow::bail!("this hymba was built without `serve`; build it with `cargo install hymba --features serve`")
}
