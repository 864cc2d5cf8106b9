//! `hymba eval activations`: what rounding activations to 8 bits costs by itself.

use std::{
    io::{self, Write},
    sync::atomic::AtomicBool,
};

use hymba::{
    Error,
    engine::{Session, diverge},
    format::DType,
    quant::recode,
};
use serde_json::json;

use super::{
    Common,
    text::{CONTEXTS, TextArgs, bar, divergence_json, tell},
};
use crate::cli::options::count;

#[derive(clap::Args)]
#[command(
    long_about = "What rounding activations to 8 bits costs by itself: the model as it runs, beside one with the same \
weights decoded to F32 in memory, whose products read activations as they are. That needs 4 bytes a weight."
)]
#[command(after_help = CONTEXTS)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    text: TextArgs,
    /// Read no more than the first N tokens of the text; 0 is all
    #[arg(long, value_name = "N", default_value = "0", value_parser = count())]
    tokens: usize,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let model = args.common.model.open(args.text.json)?;
    let text = args.text.read(&model, args.tokens)?;
    let exact = model.with_matrices(|name, matrix| {
        if !matrix.dtype.is_quantized() {
            return Ok(None);
        }
        recode(matrix, DType::F32).map_err(|unfit| Error::format(model.file(), format!("tensor `{name}` {unfit}")))
    })?;
    let options = args.text.side_by_side(&args.common.machine);
    // Both compute the state after the meta tokens: the file's was computed with rounded activations or without.
    let options = hymba::engine::SessionOptions { stored_meta_state: false, ..options };
    let (mut base, mut other) = (Session::new(&exact, &options)?, [Session::new(&model, &options)?]);
    let bar = bar(text.ids.len(), "")?;
    let found = diverge(&mut base, &mut other, text.bos, &text.ids, cancel, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    let found = found?.remove(0);
    let what = "the same weights with activations as they are";
    let mut out = io::stdout().lock();
    if args.text.json {
        let object = json!({
            "model": model.file(),
            "file": text.name,
            "tokens": text.ids.len(),
            "context": args.text.context,
            "perplexity": found.perplexity().mean,
            "against": divergence_json(what, &found),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    tell(&mut out, what, &found)?;
    Ok(())
}
