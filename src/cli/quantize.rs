//! `hymba quantize`: a Hugging Face folder or a GGUF file in, a GGUF file of another type out.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    num::NonZeroUsize,
    path::PathBuf,
    sync::atomic::AtomicBool,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use hymba::{
    format::DType,
    quant::{Event, Options, Recipe, TypePlan, convert},
};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use regex::Regex;

use self::rounding::RoundingArgs;
use super::{options::count, terminal};

mod rounding;

/// Convert a checkpoint to a GGUF file, usually a smaller one.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder (config.json and safetensors), or a GGUF file of a Hymba model
    input: PathBuf,
    /// The GGUF file to write
    output: PathBuf,
    /// How to store the matrices: a type, or a recipe that keeps to so many bits a weight over all tensors and gives more
    /// to those that need more (q8, q6: 6.6, q5: 5.6, q4: 4.6, small: 4.5); norms and other small tensors stay wider
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0", value_parser = type_parser())]
    target: Target,
    /// All matrices in one type, with a recipe in its main one (q6: q5_1, q5: q5_0, q4: q4_0, small: mxfp4)
    #[arg(long)]
    pure: bool,
    /// Store the tensors whose name matches in another type; the last match wins
    #[arg(long = "tensor-type", value_name = "REGEX=TYPE", value_parser = parse_override)]
    overrides: Vec<(Regex, DType)>,
    /// Order of the blocks: packed is what hymba runs fastest, standard is what other tools read; no value differs
    #[arg(long, value_enum, default_value = "packed")]
    layout: BlockOrder,
    #[command(flatten)]
    rounding: RoundingArgs,
    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,
    /// Threads that convert [default: one a core]
    #[arg(short = 't', long, value_name = "N", value_parser = count().range(1..=512))]
    threads: Option<usize>,
    /// Show neither progress nor summary
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum BlockOrder {
    Packed,
    Standard,
}

/// What is asked for with --type.
#[derive(Clone, Copy)]
enum Target {
    Type(DType),
    Recipe(Recipe),
}

fn type_parser() -> impl TypedValueParser<Value = Target> {
    let names = DType::ALL.iter().map(|t| t.name()).chain(Recipe::ALL.iter().map(|r| r.name()));
    PossibleValuesParser::new(names).try_map(|name| {
        let recipe = || Recipe::from_name(&name).map(Target::Recipe);
        DType::from_name(&name).map(Target::Type).or_else(recipe).ok_or("no such type")
    })
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

impl Args {
    /// Whether anything goes to standard output.
    pub fn writes_output(&self) -> bool {
        !self.quiet
    }
}

/// Converts. `cancel` turning true stops it and leaves nothing.
pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let options = Options {
        types: match args.target {
            Target::Type(dtype) => TypePlan::Uniform(dtype),
            Target::Recipe(recipe) => TypePlan::Recipe { recipe, pure: args.pure },
        },
        packed: args.layout == BlockOrder::Packed,
        overrides: args.overrides.clone(),
        rounding: args.rounding.rounding()?,
        calibration: args.rounding.calibration(cancel)?,
        save_moments: args.rounding.save_calibration.clone(),
        force: args.force,
        threads: args.threads.and_then(NonZeroUsize::new),
    };
    let bar = if args.quiet || !io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::no_length() };
    let bytes_style = ProgressStyle::with_template("{bar:20} {percent:>3} % {binary_bytes_per_sec:>12}  {wide_msg}")?;
    // From all that was done, not from the last seconds: a layer goes through phases of different speed.
    let steps_style = ProgressStyle::with_template("{bar:20} {percent:>3} % {left:>5} left  {wide_msg}")?.with_key(
        "left",
        |state: &ProgressState, to: &mut dyn fmt::Write| {
            let done = state.fraction().max(1e-3);
            let left = state.elapsed().mul_f32((1.0 - done) / done);
            let _ = write!(to, "{:#}", HumanDuration(left)); // to a string, which takes all
        },
    );
    let mut show = |event: Event| match event {
        Event::Calibrate { steps } => {
            bar.set_style(steps_style.clone());
            bar.set_length(steps);
        }
        Event::Calibrated { what, steps } => {
            if bar.message() != what {
                bar.set_message(what.to_owned());
            }
            bar.inc(steps);
        }
        Event::Begin { bytes } => {
            bar.set_style(bytes_style.clone());
            bar.reset();
            bar.set_length(bytes);
        }
        Event::Converted { tensor, bytes } => {
            if bar.message() != tensor {
                bar.set_message(tensor.to_owned());
            }
            bar.inc(bytes);
        }
        Event::MetaState => bar.set_message("state after the meta tokens"),
    };
    let converted = convert(&args.input, &args.output, &options, &mut show, cancel);
    bar.finish_and_clear();
    let summary = converted?;
    if !args.quiet {
        summary.to_string().lines().try_for_each(|line| writeln!(terminal::out(), "{line}"))?;
    }
    Ok(())
}
