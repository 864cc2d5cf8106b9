//! `hymba inspect`: what a model file holds, and what running it will take.

mod page;
mod report;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::format::gguf::Gguf;

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
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        let terminal = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        page::write(&report, args.tensors, terminal.map_or(80, |(width, _)| width.0.into()), &mut out)?;
    }
    out.flush()?;
    Ok(())
}
