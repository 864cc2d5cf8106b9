//! `hymba eval perplexity`: perplexity on a text, alone or against a base model.

use std::{io::Write, path::PathBuf, sync::atomic::AtomicBool, time::Instant};

use hymba::{
    engine::Model,
    eval::{Estimate, perplexity},
};
use serde_json::json;

use super::{
    args::Common,
    text::{CONTEXTS, TextArgs, bar, divergence_from, divergence_json, write_comparison},
};
use crate::cli::{json::JSON_VERSION, named::resolve, options::new_session, terminal};

#[derive(clap::Args)]
#[command(after_help = CONTEXTS)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    text: TextArgs,
    /// Also report the KL divergence from this model, usually the one it was quantized from
    #[arg(long, value_name = "BASE")]
    kl: Option<PathBuf>,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let text = args.text.read(cancel)?;
    let model = args.common.model.open(args.text.json, cancel)?;
    let text = args.text.tokenize(&text, &model, 0, cancel)?;
    let base = args.kl.as_ref().map(|kl| anyhow::Ok(Model::open(resolve(kl)?)?)).transpose()?;
    let start = Instant::now();
    let options = args.common.machine.options(args.text.context);
    let found = base.as_ref().map(|base| divergence_from(base, &model, &options, &text, cancel)).transpose()?;
    let nll = match &found {
        Some(found) => Estimate::of(found.nll.iter().copied()),
        None => {
            let mut session = new_session(&model, &args.common.machine.options(args.text.context), cancel)?;
            let bar = bar(text.ids.len(), "perplexity ")?;
            let alone = perplexity(&mut session, text.bos, &text.ids, cancel, &mut |so_far| {
                bar.set_position(so_far.predicted() as u64);
                bar.set_message(format!("{:.3}", so_far.perplexity().mean));
            });
            bar.finish_and_clear();
            alone?.nll()
        }
    };

    let (perplexity, seconds, tokens) = (nll.exp(), start.elapsed().as_secs_f64(), text.ids.len());
    let contexts = tokens.div_ceil(args.text.context - 1);
    let bits_per_byte = text.complete.then(|| nll.mean * tokens as f64 / std::f64::consts::LN_2 / text.bytes as f64);
    let rate = tokens as f64 / seconds;
    let mut out = terminal::out();
    if args.text.json {
        let object = json!({
            "version": JSON_VERSION,
            "model": model.file(),
            "file": text.name,
            "bytes": text.bytes,
            "tokens": tokens,
            "context": args.text.context,
            "contexts": contexts,
            "predicted": tokens,
            "nll": nll.mean,
            "nll_error": nll.error,
            "perplexity": perplexity.mean,
            "perplexity_error": perplexity.error,
            "bits_per_byte": bits_per_byte,
            "seconds": seconds,
            "tokens_per_second": rate,
            "against": found.map(|found| divergence_json(base.as_ref().map_or("", Model::file), &found)),
        });
        out.json(&object, false)?;
        return Ok(());
    }
    let bits = bits_per_byte.map(|bits| format!(", {bits:.5} bits/byte")).unwrap_or_default();
    writeln!(out, "perplexity   {:.4} ± {:.4} per token", perplexity.mean, perplexity.error)?;
    writeln!(out, "nll          {:.6} ± {:.6} nats/token{bits}", nll.mean, nll.error)?;
    writeln!(out, "tokens       {tokens} in {contexts} contexts of {}", args.text.context)?;
    if let (Some(found), Some(base)) = (&found, &base) {
        write_comparison(&mut out, base.file(), found)?;
    }
    writeln!(out, "time         {seconds:.1} s, {rate:.0} tokens/s")?;
    Ok(())
}
