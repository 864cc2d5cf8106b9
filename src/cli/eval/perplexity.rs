//! `hymba eval perplexity`: how well a model predicts a text.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::atomic::AtomicBool,
    time::Instant,
};

use hymba::{
    Error,
    engine::{Session, perplexity},
    text::Tokenizer,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Common;
use crate::cli::options::count;

#[derive(clap::Args)]
#[command(
    after_help = "The text is encoded whole, without special tokens, and cut into consecutive runs of one token \
less than the context. Each run is one context: the meta tokens, BOS, the run. Every token of the text is predicted; \
the loss is the average of -ln p over them."
)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// The text, UTF-8
    file: PathBuf,
    /// Tokens of a context, BOS included
    #[arg(short, long, value_name = "N", default_value = "1024", value_parser = count().range(2..=1 << 24))]
    context: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let bytes = fs::read(&args.file).map_err(|e| Error::io("cannot read", &args.file, e))?;
    let name = args.file.display();
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        Error::format(name.to_string(), format!("is not UTF-8 text: byte {} does not fit", e.valid_up_to()))
    })?;
    let model = args.common.model.open(args.json)?;
    let tokenizer = Tokenizer::from_metadata(model.metadata(), model.file())?;
    let bos = tokenizer
        .bos()
        .ok_or_else(|| Error::format(model.file(), "names no BOS token, with which each context begins"))?;
    let ids = tokenizer.encode(text, false)?;
    if ids.is_empty() {
        return Err(Error::format(name.to_string(), "holds no text").into());
    }
    let mut session = Session::new(&model, &args.common.options(args.context))?;
    let bar = if io::stderr().is_terminal() { ProgressBar::new(ids.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3} % {eta:>4}  perplexity {msg}")?);
    let start = Instant::now();
    let result = perplexity(&mut session, bos, &ids, cancel, &mut |so_far| {
        bar.set_position(so_far.predicted as u64);
        bar.set_message(format!("{:.3}", so_far.perplexity()));
    });
    bar.finish_and_clear();
    let (result, seconds) = (result?, start.elapsed().as_secs_f64());

    let bits_per_byte = result.nll_sum / std::f64::consts::LN_2 / bytes.len() as f64;
    let rate = result.predicted as f64 / seconds;
    let mut out = io::stdout().lock();
    if args.json {
        let object = json!({
            "model": model.file(),
            "file": name.to_string(),
            "bytes": bytes.len(),
            "tokens": ids.len(),
            "context": args.context,
            "contexts": result.contexts,
            "predicted": result.predicted,
            "nll": result.nll(),
            "perplexity": result.perplexity(),
            "bits_per_byte": bits_per_byte,
            "seconds": seconds,
            "tokens_per_second": rate,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "perplexity   {:.4} a token", result.perplexity())?;
        writeln!(out, "nll          {:.6} nats a token, {bits_per_byte:.5} bits a byte", result.nll())?;
        writeln!(out, "tokens       {} in {} contexts of {}", result.predicted, result.contexts, args.context)?;
        writeln!(out, "time         {seconds:.1} s, {rate:.0} tokens/s")?;
    }
    Ok(())
}
