//! `hymba eval activations`: what rounding activations to 8 bits costs by itself.

use std::sync::atomic::AtomicBool;

use hymba::{Error, engine::SessionOptions, format::DType, quant::requantize};

use super::{
    args::Common,
    text::{CONTEXTS, TextArgs, beside, report},
};

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
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let model = args.common.model.open(args.text.json, cancel)?;
    let text = args.text.read(&model, 0, cancel)?;
    let exact = model.with_matrices(|name, matrix| {
        if !matrix.dtype.is_quantized() {
            return Ok(None);
        }
        Error::check_cancelled(cancel)?;
        requantize(matrix, DType::F32).map_err(|unfit| Error::format(model.file(), format!("tensor `{name}` {unfit}")))
    })?;
    // Both compute the state after the meta tokens: the file's was computed with rounded activations or without.
    let options = SessionOptions { stored_meta_state: false, ..args.common.machine.options(args.text.context) };
    let found = beside(&exact, &model, &options, &text, cancel)?;
    report(&args.text, &text, model.file(), "the same weights with activations as they are", &found)?;
    Ok(())
}
