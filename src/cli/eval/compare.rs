//! `hymba eval compare`: the KL divergence between two models on a text.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use hymba::engine::Model;

use super::{
    args::RuntimeArgs,
    text::{CONTEXTS, TextArgs, divergence_from, report},
};
use crate::cli::named::resolve;

#[derive(clap::Args)]
#[command(after_help = CONTEXTS)]
pub struct Args {
    /// Reference model (GGUF)
    a: PathBuf,
    /// Model to compare with it (GGUF)
    b: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    machine: RuntimeArgs,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let [a, b] = [Model::open(resolve(&args.a)?)?, Model::open(resolve(&args.b)?)?];
    let text = args.text.tokenize(&args.text.read(cancel)?, &a, 0, cancel)?;
    let found = divergence_from(&a, &b, &args.machine.options(args.text.context), &text, cancel)?;
    report(&args.text, &text, b.file(), a.file(), &found)?;
    Ok(())
}
