//! `hymba eval`: model evaluation.

mod activations;
mod args;
mod compare;
mod logits;
mod perplexity;
mod sensitivity;
mod text;

use std::sync::{Arc, atomic::AtomicBool};

/// Evaluate a model: perplexity, KL divergence, quantization sensitivity, logits
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write the logits for each of the given token ids to a safetensors file
    Logits(logits::Args),
    /// Measure perplexity on a text, and with --kl the divergence from a base model
    Perplexity(perplexity::Args),
    /// Measure the KL divergence between two models on a text
    Compare(compare::Args),
    /// Measure quantization sensitivity per tensor class
    Sensitivity(sensitivity::Args),
    /// Measure the effect of 8-bit activation quantization alone
    Activations(activations::Args),
}

impl Args {
    /// Whether it writes to standard output.
    pub fn writes_output(&self) -> bool {
        !matches!(self.command, Command::Logits(_))
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
