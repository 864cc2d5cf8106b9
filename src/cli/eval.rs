//! `hymba eval`: numbers about a model, for people who check or compare.

mod activations;
mod compare;
mod logits;
mod perplexity;
mod sensitivity;
mod text;

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::{engine::SessionOptions, format::CacheType};

use super::{
    model::ModelArgs,
    options::{cache_type, count},
};

/// Measure what a model computes: its logits, how well it predicts a text, how far it is from another
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write the logits after each of the given token ids to a safetensors file
    Logits(logits::Args),
    /// Average negative log-likelihood and perplexity of a text, and with --kl the divergence from a base model
    Perplexity(perplexity::Args),
    /// How far one model is from another on a text
    Compare(compare::Args),
    /// What a text is predicted worse by when one class of tensors alone is quantized
    Sensitivity(sensitivity::Args),
    /// What rounding activations to 8 bits costs by itself
    Activations(activations::Args),
}

/// The model and how it runs.
#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    machine: RuntimeArgs,
}

/// How models run.
#[derive(clap::Args)]
struct RuntimeArgs {
    /// Threads to compute with [default: one a core that this process may use]
    #[arg(short, long, value_name = "N", value_parser = count().range(1..=512))]
    threads: Option<usize>,
    /// How keys and values are stored; f32 adds nothing to the weights' own rounding
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = cache_type())]
    cache_type: CacheType,
}

impl RuntimeArgs {
    /// The engine's options for texts of up to `context` tokens.
    fn options(&self, context: usize) -> SessionOptions {
        let threads = self.threads.and_then(NonZeroUsize::new);
        SessionOptions { context: Some(context), threads, cache: self.cache_type, ..SessionOptions::default() }
    }
}

/// Runs the chosen measurement.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    match &args.command {
        Command::Logits(args) => logits::run(args, cancel),
        Command::Perplexity(args) => perplexity::run(args, cancel),
        Command::Compare(args) => compare::run(args, cancel),
        Command::Sensitivity(args) => sensitivity::run(args, cancel),
        Command::Activations(args) => activations::run(args, cancel),
    }
}
