//! `hymba eval compare`: how far one model is from another on a text.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::atomic::AtomicBool,
};

use hymba::engine::{Model, Session, diverge};
use serde_json::json;

use super::{
    MachineArgs,
    text::{CONTEXTS, TextArgs, bar, divergence_json, tell},
};
use crate::cli::options::count;

#[derive(clap::Args)]
#[command(after_help = CONTEXTS)]
pub struct Args {
    /// The model that is compared with (GGUF)
    a: PathBuf,
    /// The model that may differ from it (GGUF)
    b: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Read no more than the first N tokens of the text; 0 is all
    #[arg(long, value_name = "N", default_value = "0", value_parser = count())]
    tokens: usize,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let [a, b] = [Model::open(&args.a)?, Model::open(&args.b)?];
    let text = args.text.read(&a, args.tokens)?;
    let options = args.text.side_by_side(&args.machine);
    let (mut base, mut other) = (Session::new(&a, &options)?, [Session::new(&b, &options)?]);
    let bar = bar(text.ids.len(), "")?;
    let found = diverge(&mut base, &mut other, text.bos, &text.ids, cancel, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    let found = found?.remove(0);
    let (perplexity, mut out) = (found.perplexity(), io::stdout().lock());
    if args.text.json {
        let object = json!({
            "model": b.file(),
            "file": text.name,
            "tokens": text.ids.len(),
            "context": args.text.context,
            "perplexity": perplexity.mean,
            "perplexity_error": perplexity.error,
            "against": divergence_json(a.file(), &found),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(out, "model        {}, perplexity {:.4} ± {:.4}", b.file(), perplexity.mean, perplexity.error)?;
    tell(&mut out, a.file(), &found)?;
    Ok(())
}
