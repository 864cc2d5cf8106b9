//! `hymba inspect`: what a model file holds, and what running it will take.

mod page;
mod report;

use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::format::gguf::Gguf;

use super::terminal;
use report::Report;

/// Show what a model file holds: sizes, layers, types, cache, tokenizer
#[derive(clap::Args)]
pub struct Args {
    /// The GGUF file
    model: PathBuf,
    /// List every tensor too
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object instead, tensors included
    #[arg(long)]
    json: bool,
}

/// Runs the command: the report goes to stdout, as wide as the terminal is.
pub fn run(args: &Args, _cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.model)?;
    let report = Report::new(&gguf.file, gguf.bytes.len() as u64, &gguf.metadata, &gguf.tensors)?;
    let mut out = terminal::out();
    if args.json {
        out.json(&report, true)?;
    } else {
        let terminal = out.is_terminal().then(terminal_size::terminal_size).flatten();
        let mut page = Vec::new();
        page::write(&report, args.tensors, terminal.map_or(80, |(width, _)| width.0.into()), &mut page)?;
        out.write_all(&page)?;
    }
    out.flush()?;
    Ok(())
}
