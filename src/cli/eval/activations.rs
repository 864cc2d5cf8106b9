//! `hymba eval activations`: the effect of 8-bit activation quantization alone.

use std::sync::atomic::AtomicBool;

use hymba::{Error, engine::SessionOptions, format::DType, quant::requantize};

use super::{
    args::Common,
    text::{CONTEXTS, TextArgs, divergence_from, report},
};

#[derive(clap::Args)]
#[command(
    long_about = "Effect of 8-bit activation quantization alone: compares the model with a copy whose weights are decoded to F32 in memory (4 bytes per weight) and whose activations are not quantized."
)]
#[command(after_help = CONTEXTS)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    text: TextArgs,
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let text = args.text.read(cancel)?;
    let model = args.common.model.open(args.text.json, cancel)?;
    let text = args.text.tokenize(&text, &model, 0, cancel)?;
    let exact = model.with_matrices(|name, matrix| {
        if !matrix.dtype.is_quantized() {
            return Ok(None);
        }
        Error::check_cancelled(cancel)?;
        requantize(matrix, DType::F32).map_err(|unfit| Error::format(model.file(), format!("tensor `{name}` {unfit}")))
    })?;
    // Both recompute the state after the meta tokens: it is unknown how the file's was computed.
    let options = SessionOptions { stored_meta_state: false, ..args.common.machine.options(args.text.context) };
    let found = divergence_from(&exact, &model, &options, &text, cancel)?;
    report(&args.text, &text, model.file(), "the same weights with unquantized activations", &found)?;
    Ok(())
}
