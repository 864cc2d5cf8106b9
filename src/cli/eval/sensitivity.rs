//! `hymba eval sensitivity`: quantization sensitivity per tensor class.

use std::{io::Write, sync::atomic::AtomicBool};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use hymba::{Error, engine::Model, eval::diverge, format::DType, quant::requantize};
use serde_json::{Value, json};

use super::{
    args::Common,
    text::{CONTEXTS, TextArgs, bar, percent},
};
use crate::cli::{json::JSON_VERSION, options::new_session, terminal};

#[derive(clap::Args)]
#[command(
    long_about = "Quantizes one class of tensors at a time (round to nearest) and measures the loss on a text. All variants of the model are held in memory and share the unchanged tensors."
)]
#[command(after_help = CONTEXTS, mut_arg("tokens", |arg| {
    arg.help(format!("Maximum number of tokens of the text (0: all) [default: {TOKENS}]"))
}))]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    text: TextArgs,
    /// Quantization type
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0", value_parser = type_parser())]
    dtype: DType,
    /// Also quantize each layer alone
    #[arg(long)]
    layers: bool,
}

/// Default number of tokens: each costs a pass of every variant.
const TOKENS: usize = 8192;

fn type_parser() -> impl TypedValueParser<Value = DType> {
    let types = DType::ALL.into_iter().filter(|t| t.is_quantized()).map(DType::name);
    PossibleValuesParser::new(types).try_map(|name| DType::from_name(&name).ok_or("unknown type"))
}

/// A class of tensors.
struct Class {
    name: String,
    contains: Box<dyn Fn(&str) -> bool>,
}

/// Returns the classes of a model with `layers` layers.
fn classes(layers: usize, each_layer: bool) -> Vec<Class> {
    let class = |name: &str, contains: Box<dyn Fn(&str) -> bool>| Class { name: name.into(), contains };
    let mut all = vec![class("all", Box::new(|_| true))];
    all.push(class("embedding and head", Box::new(|n| n == "token_embd.weight" || n == "output.weight")));
    for kind in ["in_proj", "ssm_x", "ssm_dt", "out_proj", "ffn_gate", "ffn_up", "ffn_down"] {
        let end = format!(".{kind}.weight");
        all.push(class(kind, Box::new(move |n| n.ends_with(&end))));
    }
    let last = layers.saturating_sub(1);
    for layer in (0..layers).filter(|&i| each_layer || i == 0 || i == last) {
        let start = format!("blk.{layer}.");
        let name = match layer {
            0 => "first layer".to_owned(),
            i if i == last => "last layer".to_owned(),
            i => format!("layer {i}"),
        };
        all.push(class(&name, Box::new(move |n| n.starts_with(&start))));
    }
    all
}

/// Returns the model with a class's matrices quantized, the number of weights changed, and the bytes saved.
fn quantized(model: &Model, class: &Class, dtype: DType, cancel: &AtomicBool) -> hymba::Result<(Model, u64, i64)> {
    let (mut weights, mut saved) = (0, 0);
    let changed = model.with_matrices(|name, matrix| {
        if name == "meta_embd.weight" || !(class.contains)(name) {
            return Ok(None);
        }
        Error::check_cancelled(cancel)?;
        let other_matrix = requantize(matrix, dtype)
            .map_err(|unfit| Error::format(model.file(), format!("tensor `{name}` {unfit}")))?;
        if let Some(other) = &other_matrix {
            weights += (matrix.rows * matrix.cols) as u64;
            saved += matrix.data.len() as i64 - other.data.len() as i64;
        }
        Ok(other_matrix)
    })?;
    Ok((changed, weights, saved))
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let text = args.text.read(cancel)?;
    let model = args.common.model.open(args.text.json, cancel)?;
    let text = args.text.tokenize(&text, &model, TOKENS, cancel)?;
    let mut kept = Vec::new();
    for class in classes(model.config().layers, args.layers) {
        let variant = quantized(&model, &class, args.dtype, cancel)?;
        // A model may lack a class, or its rows may not divide into blocks.
        if variant.1 > 0 {
            kept.push((class, variant));
        }
    }
    let options = args.common.machine.options(args.text.context);
    let mut base = new_session(&model, &options, cancel)?;
    let mut sessions =
        kept.iter().map(|(_, v)| new_session(&v.0, &options, cancel)).collect::<hymba::Result<Vec<_>>>()?;
    let bar = bar(text.ids.len(), "")?;
    let found = diverge(&mut base, &mut sessions, text.bos, &text.ids, cancel, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    let found = found?;

    let mut out = terminal::out();
    if args.text.json {
        let rows = kept.iter().zip(&found).map(|((class, (_, weights, saved)), found)| {
            let (ratio, kl) = (found.perplexity_ratio(), found.mean_kl());
            json!({
                "class": class.name, "weights": weights, "bytes_saved": saved,
                "perplexity_ratio": ratio.mean, "perplexity_ratio_error": ratio.error,
                "kl": kl.mean, "kl_error": kl.error,
            })
        });
        let object = json!({
            "version": JSON_VERSION, "model": model.file(), "file": text.name, "tokens": text.ids.len(), "context": args.text.context,
            "type": args.dtype.name(), "classes": rows.collect::<Vec<Value>>(),
        });
        out.json(&object, false)?;
        return Ok(());
    }
    let base = found.first().map(|f| f.base_perplexity().mean).unwrap_or_default();
    writeln!(out, "one class at a time as {}, {} tokens; baseline perplexity {base:.4}", args.dtype, text.ids.len())?;
    writeln!(
        out,
        "{:20} {:>10} {:>20} {:>23} {:>14}",
        "class", "weights", "perplexity, %", "KL, 1/1000 nats", "per million"
    )?;
    for ((class, (_, weights, _)), found) in kept.iter().zip(&found) {
        let (change, kl) = (percent(found.perplexity_ratio()), found.mean_kl());
        let change = format!("{:+.3} ± {:.3}", change.mean, change.error);
        let millions = *weights as f64 / 1e6;
        let each = 1e3 * kl.mean / millions;
        let kl = format!("{:.3} ± {:.3}", 1e3 * kl.mean, 1e3 * kl.error);
        writeln!(out, "{:20} {millions:>8.2} M {change:>20} {kl:>23} {each:>14.3}", class.name)?;
    }
    Ok(())
}
