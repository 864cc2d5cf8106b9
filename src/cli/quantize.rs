//! `hymba quantize`: converts a Hugging Face folder or a GGUF file to a quantized GGUF file.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use anyhow::anyhow;
use clap::builder::NonEmptyStringValueParser;
use hymba::{
    Error,
    format::DType,
    quant::{Event, Options, Summary, TypePlan, convert},
};
use indicatif::HumanDuration;
use regex::Regex;

use self::{rounding::RoundingArgs, target::Target};
use super::{options::JobArgs, progress::Progress, terminal, usage::output_file};

mod duration;
mod rounding;
mod target;

/// Convert and quantize a Hugging Face checkpoint to GGUF
#[derive(clap::Args)]
#[command(after_help = target::TABLE)]
pub struct Args {
    /// Hugging Face folder (config.json and safetensors, or a download cache entry) or GGUF file of a Hymba model
    input: PathBuf,
    /// Output GGUF file
    output: PathBuf,
    /// Quantization type, or mixed-precision recipe with a target size in bits per weight; see the table below
    #[arg(long = "type", value_name = "TYPE", default_value = "q4", ignore_case = true, value_parser = target::parse)]
    target: Target,
    /// Disable mixed precision: one type for all matrices (q6: q5_1, q5: q5_0, q4: q4_0, small: mxfp4)
    #[arg(long)]
    pure: bool,
    /// Override the type of tensors whose name matches REGEX; the last match wins
    #[arg(long = "tensor-type", value_name = "REGEX=TYPE", value_parser = target::parse_override)]
    overrides: Vec<(Regex, DType)>,
    /// Tensor layout: packed (fastest) or standard ggml (readable by other tools); lossless either way
    #[arg(long, value_enum, default_value = "packed")]
    layout: BlockOrder,
    /// Model name [default: from the repository, the model card or the folder]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    #[command(flatten)]
    rounding: RoundingArgs,
    /// Replace OUTPUT if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum BlockOrder {
    Packed,
    Standard,
}

impl Args {
    /// Whether it writes to standard output.
    pub fn writes_output(&self) -> bool {
        !self.job.quiet
    }
}

/// Runs the conversion. Setting `cancel` stops it without leaving a file.
pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    output_file("OUTPUT", &args.output)?;
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
        name: args.name.clone(),
        force: args.force,
        threads: args.job.threads(),
        ..Options::default()
    };
    let mut progress = Progress::new(args.job.quiet);
    let mut show = |event: Event| {
        if let Event::Opened { parameters } = event {
            let time = duration::estimate(&options, parameters);
            if time > Duration::from_secs(10) {
                progress.note(&format!("this takes about {}", HumanDuration(time)));
            }
        }
        progress.convert(event);
    };
    let converted = convert(&args.input, &args.output, &options, &mut show, cancel);
    progress.finish();
    let summary = converted.map_err(of_input)?;
    if !args.job.quiet {
        let report = report(&args.output, &summary);
        report.lines().try_for_each(|line| writeln!(terminal::out(), "{line}"))?;
    }
    Ok(())
}

/// Replaces the hints for models that cannot be run, which recommend this command.
fn of_input(error: Error) -> anyhow::Error {
    let hint = match error {
        Error::NotGguf { .. } => "name a Hugging Face folder or a GGUF file",
        Error::Model { .. } | Error::NoTokenizer(_) => "convert the original checkpoint instead",
        error => return error.into(),
    };
    anyhow!("{error}; {hint}")
}

/// Returns the summary and the next command.
fn report(output: &Path, summary: &Summary) -> String {
    let text = summary.to_string();
    let (details, last) = text.rsplit_once('\n').map_or(("", &*text), |(details, last)| (details, last));
    let details = if details.is_empty() { String::new() } else { format!("{details}\n") };
    let file = output.display().to_string();
    let shell = if file.contains(|c: char| !c.is_alphanumeric() && !"/._-+=".contains(c)) {
        format!("'{}'", file.replace('\'', r"'\''"))
    } else {
        file.clone()
    };
    let next = match summary.chats {
        true => format!("hymba chat -m {shell}"),
        false => format!("hymba run -m {shell} \"Once upon a time\""),
    };
    format!("{details}wrote {file}: {last}\ntry it: {next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_ends_with_the_next_command() {
        let summary = Summary { parameters: 1_000_000, bytes: 2_000_000, bits_per_weight: 4.6, ..Summary::default() };
        assert_eq!(
            report(Path::new("a/m.gguf"), &summary),
            "wrote a/m.gguf: 2.0 MB, 1.0M weights at 4.60 bits each, in 0.0 s\n\
             try it: hymba run -m a/m.gguf \"Once upon a time\""
        );
        let chats = report(Path::new("it's.gguf"), &Summary { chats: true, ..summary });
        assert!(chats.ends_with(r"try it: hymba chat -m 'it'\''s.gguf'"), "{chats}");
    }
}
