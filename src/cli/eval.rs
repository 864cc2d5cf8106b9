//! `hymba eval`: numbers about a model, for people who check or compare.

mod logits;
mod perplexity;

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::backend::Kind;

/// Measure what a model computes: its logits, or its perplexity on a text
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write the logits after each of the given token ids to a safetensors file
    Logits(logits::Args),
    /// Average negative log-likelihood and perplexity of a text
    Perplexity(perplexity::Args),
}

/// What both have in common.
#[derive(clap::Args)]
struct Common {
    /// The GGUF file [default: $HYMBA_MODEL, or the demo model in this program]
    #[arg(short, long, value_name = "FILE")]
    model: Option<std::path::PathBuf>,
    /// Threads [default: one for each core]
    #[arg(short, long, value_name = "N", value_parser = super::threads)]
    threads: Option<NonZeroUsize>,
    /// How keys and values are stored; f32 adds nothing to the weights' own rounding
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = super::cache_type())]
    cache_type: Kind,
}

/// Runs the chosen measurement.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    match &args.command {
        Command::Logits(args) => logits::run(args, cancel),
        Command::Perplexity(args) => perplexity::run(args, cancel),
    }
}
