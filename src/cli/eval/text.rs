//! The evaluation text, and the report of comparisons.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::atomic::AtomicBool,
};

use hymba::{
    Error,
    engine::{Model, SessionOptions},
    eval::{Divergence, Estimate, diverge},
    limits,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::{
    json::JSON_VERSION,
    options::{count, new_session},
    prompt::read_text,
    terminal,
};

/// How a text is divided, for --help.
pub const CONTEXTS: &str = "The text is tokenized as a whole, without special tokens, and divided into consecutive runs of one token less than the context size. Each context consists of the meta tokens, BOS and one run. Every token of the text is predicted; the loss is the mean of -ln p. Values after ± are standard errors of means over tokens.";

/// Evaluation text flags.
#[derive(clap::Args)]
pub struct TextArgs {
    /// Text (UTF-8); `-`: standard input
    file: PathBuf,
    /// Context size in tokens, BOS included
    #[arg(short, long, value_name = "N", default_value = "1024", value_parser = count(2..=limits::CONTEXT as u64))]
    pub context: usize,
    /// Maximum number of tokens of the text (0: all) [default: 0]
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    tokens: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A tokenized text.
pub struct Text {
    /// Its file name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: usize,
    /// Its tokens, possibly truncated.
    pub ids: Vec<u32>,
    /// Whether `ids` are all of its tokens.
    pub complete: bool,
    /// The BOS token that begins each context.
    pub bos: u32,
}

impl TextArgs {
    /// Reads the file.
    pub fn read(&self, cancel: &AtomicBool) -> hymba::Result<String> {
        read_text(&self.file, cancel)
    }

    /// Tokenizes the file's `text` for `model`; without a user limit, only its first `max_tokens` tokens (0: all).
    pub fn tokenize(&self, text: &str, model: &Model, max_tokens: usize, cancel: &AtomicBool) -> anyhow::Result<Text> {
        let max_tokens = self.tokens.unwrap_or(max_tokens);
        let name = self.file.display().to_string();
        let tokenizer = model.tokenizer()?;
        let bos =
            tokenizer.bos().ok_or_else(|| Error::format(model.file(), "has no BOS token, which each context needs"))?;
        let mut ids = tokenizer.encode_until(text, false, cancel)?;
        if ids.is_empty() {
            return Err(Error::format(name, "contains no text").into());
        }
        let complete = max_tokens == 0 || ids.len() <= max_tokens;
        if !complete {
            ids.truncate(max_tokens);
        }
        Ok(Text { name, bytes: text.len(), ids, complete, bos })
    }
}

/// Returns a progress bar over `tokens` tokens.
pub fn bar(tokens: usize, label: &str) -> anyhow::Result<ProgressBar> {
    let bar = if terminal::draws() { ProgressBar::new(tokens as u64) } else { ProgressBar::hidden() };
    Ok(bar
        .with_style(ProgressStyle::with_template(&format!("{{bar:20}} {{percent:>3}} % {{eta:>4}}  {label}{{msg}}"))?))
}

/// Measures the divergence of `model` from `base` on the text.
pub fn divergence_from(
    base: &Model,
    model: &Model,
    options: &SessionOptions,
    text: &Text,
    cancel: &AtomicBool,
) -> anyhow::Result<Divergence> {
    let mut base = new_session(base, options, cancel)?;
    let mut other = [new_session(model, options, cancel)?];
    let bar = bar(text.ids.len(), "")?;
    let found = diverge(&mut base, &mut other, text.bos, &text.ids, cancel, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    Ok(found?.remove(0))
}

/// Prints the divergence of `model` from `base`.
pub fn report(args: &TextArgs, text: &Text, model: &str, base: &str, found: &Divergence) -> io::Result<()> {
    let (perplexity, mut out) = (found.perplexity(), terminal::out());
    if args.json {
        let object = json!({
            "version": JSON_VERSION,
            "model": model,
            "file": text.name,
            "tokens": text.ids.len(),
            "context": args.context,
            "perplexity": perplexity.mean,
            "perplexity_error": perplexity.error,
            "against": divergence_json(base, found),
        });
        return out.json(&object, false);
    }
    writeln!(out, "model        {model}, perplexity {:.4} ± {:.4}", perplexity.mean, perplexity.error)?;
    write_comparison(&mut out, base, found)
}

/// Converts a perplexity ratio to a change in percent.
pub fn percent(ratio: Estimate) -> Estimate {
    Estimate { mean: 100.0 * (ratio.mean - 1.0), error: 100.0 * ratio.error }
}

/// Writes the report of a comparison with `base`.
pub fn write_comparison(out: &mut impl Write, base: &str, found: &Divergence) -> io::Result<()> {
    let (kl, change, same) = (found.mean_kl(), percent(found.perplexity_ratio()), found.same_top());
    writeln!(out, "base         {base}, perplexity {:.4}", found.base_perplexity().mean)?;
    writeln!(out, "change       {:+.3} ± {:.3} % of perplexity", change.mean, change.error)?;
    writeln!(
        out,
        "divergence   {:.6} ± {:.6} nats/token (KL), 99 % of tokens below {:.4}",
        kl.mean,
        kl.error,
        found.kl_percentile(0.99)
    )?;
    writeln!(out, "top-1 agree  {:.2} ± {:.2} % of tokens", 100.0 * same.mean, 100.0 * same.error)
}

/// Returns the comparison as JSON.
pub fn divergence_json(base: &str, found: &Divergence) -> Value {
    let (kl, ratio, same) = (found.mean_kl(), found.perplexity_ratio(), found.same_top());
    json!({
        "base": base,
        "base_perplexity": found.base_perplexity().mean,
        "perplexity_ratio": ratio.mean,
        "perplexity_ratio_error": ratio.error,
        "kl": kl.mean,
        "kl_error": kl.error,
        "kl_p99": found.kl_percentile(0.99),
        "same_top": same.mean,
        "same_top_error": same.error,
    })
}
