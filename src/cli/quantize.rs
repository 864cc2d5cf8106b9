//! `hymba quantize`: a Hugging Face folder or a GGUF file in, a GGUF file of another type out.

use std::{
    io::{self, IsTerminal, Write},
    num::NonZero,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use hymba::{
    format::DType,
    quant::{Event, Options, convert},
};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;

/// Convert a checkpoint to a GGUF file, usually a smaller one.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder (config.json and safetensors), or a GGUF file of a Hymba model
    input: PathBuf,
    /// The GGUF file to write
    output: PathBuf,
    /// How to store the matrices; norms and other small tensors stay wider
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0", value_parser = type_parser())]
    dtype: DType,
    /// Store the tensors whose name matches in another type; the last match wins
    #[arg(long = "tensor-type", value_name = "REGEX=TYPE", value_parser = parse_override)]
    overrides: Vec<(Regex, DType)>,
    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,
    /// Threads that convert [default: one a core]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZero<u16>>,
    /// Show neither progress nor summary
    #[arg(short, long)]
    quiet: bool,
}

fn type_parser() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(DType::ALL.map(DType::name)).try_map(|name| DType::from_name(&name).ok_or("no such type"))
}

fn parse_override(text: &str) -> Result<(Regex, DType), String> {
    // A regular expression may hold `=`, a type's name can't.
    let (regex, name) = text.rsplit_once('=').ok_or("REGEX=TYPE is needed, for example ffn_down=q8_0")?;
    let dtype = DType::from_name(name)
        .ok_or_else(|| format!("`{name}` is no type; known are {}", DType::ALL.map(DType::name).join(", ")))?;
    let regex = Regex::new(regex).map_err(|e| {
        // The reason is the last line; the others draw the place.
        let drawing = e.to_string();
        format!("`{regex}` is no regular expression: {}", drawing.lines().last().unwrap_or_default())
    })?;
    Ok((regex, dtype))
}

/// Converts. `cancel` turning true stops it and leaves nothing; `meta_state` computes the state after the meta tokens
/// from the weights in the file it is given, as [`convert`] asks for it.
pub fn run(
    args: Args,
    cancel: &AtomicBool,
    meta_state: &mut dyn FnMut(&Path) -> hymba::Result<Vec<Vec<f32>>>,
) -> anyhow::Result<()> {
    let Args { input, output, dtype, overrides, force, threads, quiet } = args;
    let options = Options { dtype, overrides, force, threads: threads.map(|n| n.get().into()) };
    let bar = if quiet || !io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::no_length() };
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3} % {binary_bytes_per_sec:>12}  {msg}")?);
    let mut show = |event: Event| match event {
        Event::Begin { bytes } => bar.set_length(bytes),
        Event::Converted { tensor, bytes } => {
            if bar.message() != tensor {
                bar.set_message(tensor.to_owned());
            }
            bar.inc(bytes);
        }
        Event::MetaState => bar.set_message("state after the meta tokens"),
    };
    let converted = convert(&input, &output, &options, meta_state, &mut show, cancel);
    bar.finish_and_clear();
    let summary = converted?;
    if !quiet {
        writeln!(io::stdout(), "{summary}")?;
    }
    Ok(())
}
