//! Flags shared by several commands: runtime options and sampling.

use std::{
    io::{self, Write},
    num::NonZeroUsize,
    ops::RangeInclusive,
    sync::atomic::AtomicBool,
};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use hymba::{
    backend::{DeviceChoice, devices},
    engine::{Model, Session, SessionOptions},
    format::CacheType,
    limits,
    sample::{SamplingParams, Setting},
};
use rand::{TryRng, rngs::SysRng};

use super::{settings, terminal, usage::Usage, wording::grouped};

/// Runtime flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Runtime options")]
pub struct SessionArgs {
    /// Context size in tokens (0: the model's training context) [default: 0]
    #[arg(short, long, alias = "ctx-size", value_name = "N", allow_negative_numbers = true,
          value_parser = count(0..=limits::CONTEXT as u64))]
    pub context: Option<usize>,
    /// Number of threads [default: one per available core]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = count(1..=512))]
    pub threads: Option<usize>,
    /// KV cache data type
    #[arg(long, value_name = "TYPE", default_value = "f16", ignore_case = true, value_parser = cache_type())]
    pub cache_type: CacheType,
    /// Compute backend; auto: Metal if supported, otherwise CPU
    #[arg(long, value_name = "NAME", default_value = "auto", ignore_case = true, value_parser = backend())]
    pub backend: DeviceChoice,
    /// List available devices and exit
    #[arg(long)]
    pub list_devices: bool,
}

/// Flags of commands that make a file.
#[derive(Debug, Default, clap::Args)]
pub struct JobArgs {
    /// Number of threads [default: one per available core]
    #[arg(short, long, value_name = "N", value_parser = count(1..=512))]
    pub threads: Option<usize>,
    /// Suppress progress and summary
    #[arg(short, long)]
    pub quiet: bool,
}

impl JobArgs {
    /// Returns the number of threads, if it is given.
    pub fn threads(&self) -> Option<NonZeroUsize> {
        self.threads.and_then(NonZeroUsize::new)
    }
}

/// Returns a parser for whole numbers within `range`.
pub fn count(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| match range.end() {
            &u64::MAX if *range.start() == 0 => "must be a non-negative integer".into(),
            &u64::MAX => format!("must be a whole number of at least {}", range.start()),
            end => format!("must be a whole number from {} to {end}", range.start()),
        })
    }
}

/// Parses a number.
pub fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "must be a number".into())
}

/// A token limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit(pub Option<usize>);

/// Parses a token limit; −1: no limit.
pub fn limit(text: &str) -> Result<Limit, String> {
    if text == "-1" {
        return Ok(Limit(None));
    }
    let tokens =
        count(0..=u32::MAX.into())(text).map_err(|_| "must be a whole number of tokens, or -1 for no limit")?;
    Ok(Limit(Some(tokens)))
}

/// The default token limit of replies.
pub const REPLY_LIMIT: usize = 512;

/// Returns a parser for KV cache types.
pub fn cache_type() -> impl TypedValueParser<Value = CacheType> {
    let kind = |name: String| CacheType::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or_default();
    PossibleValuesParser::new(CacheType::ALL.map(CacheType::name)).map(move |name: String| kind(name.to_lowercase()))
}

fn backend() -> impl TypedValueParser<Value = DeviceChoice> {
    PossibleValuesParser::new(["auto", "cpu", "metal"]).map(|name| match name.to_lowercase().as_str() {
        "cpu" => DeviceChoice::Cpu,
        "metal" => DeviceChoice::Metal,
        _ => DeviceChoice::Auto,
    })
}

/// Prints the output of `--list-devices`: values of `--backend` and the devices behind them.
pub fn list_devices() -> io::Result<()> {
    let mut out = terminal::out();
    devices().iter().try_for_each(|(backend, name)| writeln!(out, "{backend:<6} {name}"))
}

/// Opens a session. `cancel` interrupts the pass over the meta tokens, if their state is not stored in the model file.
pub fn new_session<'m>(model: &'m Model, options: &SessionOptions, cancel: &AtomicBool) -> hymba::Result<Session<'m>> {
    if options.stored_meta_state {
        model.read_meta_tokens(options.threads, cancel)?;
    }
    Session::new(model, options)
}

impl SessionArgs {
    /// Opens an empty session on the requested device; unless `quiet`, warns about a fallback or a context beyond the
    /// training context.
    pub fn open<'m>(&self, model: &'m Model, quiet: bool, cancel: &AtomicBool) -> hymba::Result<Session<'m>> {
        let session = new_session(model, &self.options(), cancel)?;
        if quiet {
            return Ok(session);
        }
        if let Some(reason) = session.fallback() {
            terminal::warn(&terminal::describe_fallback(reason));
        }
        if let Some(warning) = beyond_training(model, session.context()) {
            terminal::warn(&warning);
        }
        Ok(session)
    }

    /// Returns the session options; a context of 0 is the default, as in llama.cpp.
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

/// Returns a warning if the model was trained on contexts shorter than `tokens`.
pub fn beyond_training(model: &Model, tokens: usize) -> Option<String> {
    let trained = model.config().default_context();
    (tokens > trained).then(|| {
        let (tokens, trained) = (grouped(tokens), grouped(trained));
        format!("the context of {tokens} tokens exceeds the model's training context of {trained}; quality may degrade")
    })
}

/// Sampling flags. Precedence: flags, the model file, llama.cpp's defaults.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling (the model file may override these defaults)")]
pub struct SamplingArgs {
    /// Temperature; 0: greedy decoding [default: 0.8]
    #[arg(long, alias = "temperature", value_name = "T", allow_negative_numbers = true, value_parser = number)]
    pub temp: Option<f64>,
    /// Top-k sampling (0: disabled) [default: 40]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number)]
    pub top_k: Option<f64>,
    /// Top-p (nucleus) sampling (1: disabled) [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = number)]
    pub top_p: Option<f64>,
    /// Min-p sampling: minimum probability relative to the most likely token (0: disabled) [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = number)]
    pub min_p: Option<f64>,
    /// Repetition penalty (1: disabled) [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = number)]
    pub repeat_penalty: Option<f64>,
    /// Tokens the repetition penalty looks back over (-1: whole context) [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number)]
    pub repeat_last_n: Option<f64>,
    /// Random seed, for reproducible output [default: random]
    #[arg(long, short_alias = 's', value_name = "N", allow_negative_numbers = true, value_parser = integer)]
    pub seed: Option<u64>,
    /// The values above that come from a variable or the configuration file.
    #[arg(skip)]
    pub settings: Vec<settings::Setting>,
}

fn integer(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "must be a non-negative integer")
}

impl SamplingArgs {
    /// Returns the model's sampling defaults overridden by flags. Warns, unless `quiet`, about invalid defaults.
    pub fn of_model(&self, model: &Model, quiet: bool) -> Result<SamplingParams, Usage> {
        let (params, refused) = model.usable_sampling();
        refused.iter().filter(|_| !quiet).for_each(|warning| terminal::note(warning));
        self.apply(params)
    }

    /// Returns `params` overridden by flags and settings.
    pub fn apply(&self, params: SamplingParams) -> Result<SamplingParams, Usage> {
        self.apply_if(params, |_| true)
    }

    /// Returns `params` overridden by flags only: a resumed text keeps its own parameters otherwise.
    pub fn apply_flags(&self, params: SamplingParams) -> Result<SamplingParams, Usage> {
        self.apply_if(params, |name| self.setting_of(name).is_none())
    }

    /// Returns the setting that a parameter comes from, if it is not from the command line.
    fn setting_of(&self, name: &str) -> Option<&settings::Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    fn apply_if(&self, mut params: SamplingParams, applies: impl Fn(&str) -> bool) -> Result<SamplingParams, Usage> {
        let flags = Setting::ALL.into_iter().zip([
            self.temp,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repeat_penalty,
            self.repeat_last_n,
        ]);
        for (setting, value) in flags {
            if let Some(value) = value.filter(|_| applies(setting.name())) {
                let source = self.setting_of(setting.name()).map(|setting| setting.source.clone());
                let source = source.unwrap_or_else(|| format!("--{} {value}", setting.name()));
                params.set(setting, value).map_err(|reason| Usage(format!("{source}: {reason}")))?;
            }
        }
        Ok(params)
    }

    /// Returns the given seed, or a random one below 2^32, which every JSON parser reads exactly.
    pub fn seed(&self) -> anyhow::Result<u64> {
        match self.seed {
            Some(seed) => Ok(seed),
            None => {
                SysRng.try_next_u32().map(u64::from).context("the system provides no random seed; set one with --seed")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused_in_plain_words() {
        let message = |text: &str| count(1..=512)(text).unwrap_err();
        for text in ["0", "513", "-1", "x", "1.5", ""] {
            assert_eq!(message(text), "must be a whole number from 1 to 512", "{text}");
        }
        assert_eq!(count(1..=512)("512"), Ok(512));
        assert_eq!(limit("-1"), Ok(Limit(None)));
        assert_eq!(limit("7"), Ok(Limit(Some(7))));
        for text in ["-2", "99999999999", "many"] {
            assert_eq!(limit(text).unwrap_err(), "must be a whole number of tokens, or -1 for no limit");
        }
    }

    #[test]
    fn random_seeds_are_exact_in_json() {
        let args = SamplingArgs {
            temp: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: None,
            repeat_last_n: None,
            seed: None,
            settings: Vec::new(),
        };
        assert!((0..64).all(|_| args.seed().unwrap() < 1 << 32));
        assert_eq!(SamplingArgs { seed: Some(u64::MAX), ..args }.seed().unwrap(), u64::MAX);
    }
}
