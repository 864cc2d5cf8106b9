//! Flags shared by all measurements.

use std::num::NonZeroUsize;

use hymba::{engine::SessionOptions, format::CacheType};

use crate::cli::{
    model::ModelArgs,
    options::{cache_type, count},
};

/// Model and runtime flags.
#[derive(clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub machine: RuntimeArgs,
}

/// Runtime flags.
#[derive(clap::Args)]
pub struct RuntimeArgs {
    /// Number of threads [default: one per available core]
    #[arg(short, long, value_name = "N", value_parser = count(1..=512))]
    pub threads: Option<usize>,
    /// KV cache data type; f32 adds no error of its own
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = cache_type())]
    pub cache_type: CacheType,
}

impl RuntimeArgs {
    /// Returns session options for texts of up to `context` tokens.
    pub fn options(&self, context: usize) -> SessionOptions {
        let threads = self.threads.and_then(NonZeroUsize::new);
        SessionOptions { context: Some(context), threads, cache: self.cache_type, ..SessionOptions::default() }
    }
}
