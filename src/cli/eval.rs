//! `hymba eval`: numbers about a model, for people who check or compare.

mod logits;
mod perplexity;

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::{backend::Kind, engine::SessionOptions};

use super::{
    model::ModelArgs,
    options::{cache_type, count},
};

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
    #[command(flatten)]
    model: ModelArgs,
    /// Threads to compute with [default: one a core that this process may use]
    #[arg(short, long, value_name = "N", value_parser = count().range(1..=512))]
    threads: Option<usize>,
    /// How keys and values are stored; f32 adds nothing to the weights' own rounding
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = cache_type())]
    cache_type: Kind,
}

impl Common {
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
    }
}
