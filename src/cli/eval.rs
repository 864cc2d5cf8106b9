//! `hymba eval`: numbers about a model, for people who check or compare.

mod activations;
mod args;
mod compare;
mod logits;
mod perplexity;
mod sensitivity;
mod text;

use std::sync::{Arc, atomic::AtomicBool};

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

impl Args {
    /// Whether anything goes to standard output.
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
