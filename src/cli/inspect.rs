//! `hymba inspect`: model metadata and memory needs.

mod page;
mod report;

use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use super::{model::ModelArgs, terminal};
use report::Report;

/// Show model metadata: dimensions, layers, tensor types, KV cache, tokenizer
#[derive(clap::Args)]
pub struct Args {
    /// Model file, or name of an installed model (alternative to -m)
    #[arg(value_name = "FILE", conflicts_with = "model")]
    file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Also list every tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object, including tensors
    #[arg(long)]
    json: bool,
}

/// Runs the command: prints the report at the terminal's width.
pub fn run(args: &Args, _cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let model = args.file.clone().or(args.model.model.clone());
    let gguf = ModelArgs { model }.gguf(args.json)?;
    let report = Report::new(&gguf.file, gguf.bytes.len() as u64, &gguf.metadata, &gguf.tensors)?;
    let mut out = terminal::out();
    if args.json {
        out.json(&report, true)?;
    } else {
        let mut page = Vec::new();
        page::write(&report, args.tensors, terminal::out_width().unwrap_or(80), &mut page)?;
        out.write_all(&page)?;
    }
    out.flush()?;
    Ok(())
}
