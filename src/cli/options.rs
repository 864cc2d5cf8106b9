//! Flags that several commands share: how a session runs, how tokens are chosen.

use std::{
    io::{self, Write},
    num::NonZeroUsize,
    sync::atomic::AtomicBool,
};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser};
use hymba::{
    backend::{DeviceChoice, devices},
    engine::{Model, Session, SessionOptions},
    format::CacheType,
    limits,
    sample::{SamplingParams, Setting},
};
use rand::{TryRng, rngs::SysRng};

use super::{terminal, usage::Usage};

/// How a session runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Session")]
pub struct SessionArgs {
    /// Tokens of text that fit, prompt and reply together [default: what the model was trained for]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = count().range(0..=limits::CONTEXT as i64))]
    pub context: Option<usize>,
    /// Threads to compute with [default: one a core that this process may use]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = count().range(1..=512))]
    pub threads: Option<usize>,
    /// Number type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type())]
    pub cache_type: CacheType,
    /// What to compute with; auto: the GPU of a Mac if it has one that can, else the CPU
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = backend())]
    pub backend: DeviceChoice,
    /// List what this machine has to compute with, and leave
    #[arg(long)]
    pub list_devices: bool,
}

/// A number of things, to be given a range.
pub fn count() -> RangedI64ValueParser<usize> {
    RangedI64ValueParser::new()
}

/// The types a KV cache can have.
pub fn cache_type() -> impl TypedValueParser<Value = CacheType> {
    let kind = |name: String| CacheType::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or_default();
    PossibleValuesParser::new(CacheType::ALL.map(CacheType::name)).map(kind)
}

fn backend() -> impl TypedValueParser<Value = DeviceChoice> {
    PossibleValuesParser::new(["auto", "cpu", "metal"]).map(|name| match name.as_str() {
        "cpu" => DeviceChoice::Cpu,
        "metal" => DeviceChoice::Metal,
        _ => DeviceChoice::Auto,
    })
}

/// What `--list-devices` prints: the names that `--backend` takes, and what they stand for here.
pub fn list_devices() -> io::Result<()> {
    let mut out = terminal::out();
    devices().iter().try_for_each(|(backend, what)| writeln!(out, "{backend:<6} {what}"))
}

/// Opens a session. `cancel` ends the pass over the meta tokens, if the model file does not hold the state after them.
pub fn new_session<'m>(model: &'m Model, options: &SessionOptions, cancel: &AtomicBool) -> hymba::Result<Session<'m>> {
    if options.stored_meta_state {
        model.read_meta_tokens(options.threads, cancel)?;
    }
    Session::new(model, options)
}

impl SessionArgs {
    /// An empty session on the machine that was asked for; says, unless `quiet`, if it had to be another.
    pub fn open<'m>(&self, model: &'m Model, quiet: bool, cancel: &AtomicBool) -> hymba::Result<Session<'m>> {
        let session = new_session(model, &self.options(), cancel)?;
        if let Some(why) = session.fallback().filter(|_| !quiet) {
            terminal::note(&terminal::instead(why));
        }
        Ok(session)
    }

    /// The engine's options; a context of 0 is the default, as in llama.cpp.
    pub fn options(&self) -> SessionOptions {
        SessionOptions {
            context: self.context.filter(|&n| n > 0),
            threads: self.threads.and_then(NonZeroUsize::new),
            device: self.backend,
            cache: self.cache_type,
            ..SessionOptions::default()
        }
    }
}

/// How tokens are chosen. What a flag does not say, the model file recommends, or else llama.cpp's default holds.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling (a model file may bring defaults of its own)")]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the most likely token [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f64>,
    /// Choose among the N most likely tokens only; 0: among all [default: 40]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_k: Option<f64>,
    /// Choose among the most likely tokens that together have probability P; 1: among all [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Leave out tokens less than P times as likely as the most likely one; 0: none [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Make tokens that occurred lately less likely; 1: do not [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f64>,
    /// How many of the last tokens count as lately; -1: all [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<f64>,
    /// Start of the random numbers: the same seed gives the same text [default: another each time]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole_number)]
    pub seed: Option<u64>,
}

fn whole_number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "a seed is a whole number from 0 to 18446744073709551615")
}

impl SamplingArgs {
    /// What `model` recommends, with what the flags say in its place. Says, unless `quiet`, what can't be used of it.
    pub fn of_model(&self, model: &Model, quiet: bool) -> Result<SamplingParams, Usage> {
        let (params, refused) = model.usable_sampling();
        refused.iter().filter(|_| !quiet).for_each(|what| terminal::note(what));
        self.apply(params)
    }

    /// `params` with what the flags say in their place.
    pub fn apply(&self, mut params: SamplingParams) -> Result<SamplingParams, Usage> {
        let flags = Setting::ALL.into_iter().zip([
            self.temp,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repeat_penalty,
            self.repeat_last_n,
        ]);
        for (setting, value) in flags {
            if let Some(value) = value {
                let refuse = |why| Usage(format!("--{} {value}: the value {why}", setting.name()));
                params.set(setting, value).map_err(refuse)?;
            }
        }
        Ok(params)
    }

    /// The seed given, or a fresh one.
    pub fn seed(&self) -> anyhow::Result<u64> {
        match self.seed {
            Some(seed) => Ok(seed),
            None => SysRng.try_next_u64().context("the system gives no random seed; name one with --seed"),
        }
    }
}
