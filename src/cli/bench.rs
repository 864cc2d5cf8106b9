//! `hymba bench`: how fast a model runs, as a share of what the machine could do at most.

mod measure;
mod report;
mod speculate;

use std::{fs, io::Write, num::NonZeroUsize, path::PathBuf, sync::atomic::AtomicBool, thread, time::Instant};

use anyhow::Context;
use clap::{ValueEnum, builder::PossibleValuesParser};
use hymba::{
    engine::{Model, SessionOptions},
    format::{CacheType, DType},
    forward::DECODE_TOKENS,
    quant::{SHAPES, random_checkpoint},
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    model::ModelArgs,
    options::{cache_type, count, new_session},
    terminal,
    usage::Usage,
};
use measure::{BenchPlan, Test, measure};
use speculate::{Extent, SpeculateArgs};

/// Measure speed, as a share of the machine's limits.
///
/// Measures prefill (pp), decode (tg) and the time to the first token (ttft), at every depth with every number of
/// threads, and in the same run what these threads can do at most: how fast they read memory, which bounds decode, and
/// their rate of 8-bit multiply-adds, which bounds prefill. The limits are measured before and after every run: where
/// they differ by more than 10 %, something else used the machine, and the run is left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba bench
  hymba bench --shape hymba-1.5b -t 1,2
  hymba bench -m hymba-1.5b-q4_0.gguf -d 0,4096,8192 -t 1,2
  hymba bench -m hymba-1.5b-q4_0.gguf -p 0 -n 64 --profile
  hymba bench --shape hymba-1.5b -p 0 --ttft 0 -b 1,2,4,8 --verify 1,2,3,4,6,8
  hymba bench -m hymba-1.5b-q4_0.gguf -o json > bench.json
  hymba bench --speculate --tasks tests/data/speculate/tasks.json -o json > tasks.json
  hymba bench --shape hymba-1.5b --speculate --replay tasks.json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure a model of these sizes with random weights, made once and kept in the user's cache folder
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = PossibleValuesParser::new(SHAPES))]
    shape: Option<String>,
    /// Number type of the random weights
    #[arg(long, value_name = "TYPE", default_value = "q4_0", requires = "shape",
          value_parser = PossibleValuesParser::new(DType::ALL.map(DType::name)))]
    r#type: String,
    /// Tokens of prompt to read; 0: do not measure prefill
    #[arg(short, long, value_name = "N", default_value = "512", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    prompt: Vec<usize>,
    /// Tokens to generate; 0: do not measure decode
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    predict: Vec<usize>,
    /// Tokens of text that come before
    #[arg(short, long, value_name = "N", default_value = "0", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    depth: Vec<usize>,
    /// Tokens of the prompt whose first reply is timed; 0: do not measure that
    #[arg(long, value_name = "N", default_value = "16", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    ttft: Vec<usize>,
    /// Texts to decode together, --predict tokens each
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = count(1..=256))]
    batch: Vec<usize>,
    /// Tokens of a decode segment, as a draft is verified with: passes of so many tokens, with logits for each
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count(1..=DECODE_TOKENS as u64))]
    verify: Vec<usize>,
    #[command(flatten)]
    speculate: SpeculateArgs,
    /// Threads [default: one a core that this process may use]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = count(1..=512))]
    threads: Vec<usize>,
    /// Times to repeat each measurement, after one that warms up
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = count(1..=1000))]
    repeat: usize,
    /// Number type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type())]
    cache_type: CacheType,
    /// Tell where the time goes, by operation, too
    #[arg(long)]
    profile: bool,
    /// How to print the results
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Markdown tables
    Md,
    /// Comma-separated values
    Csv,
    /// One JSON object
    Json,
    /// A JSON object a line, as soon as its row is measured
    Jsonl,
}

/// Changes when the random weights do.
const RANDOM_VERSION: u32 = 2;

/// The file of a model with random weights, in the cache folder; made if it is not there yet.
fn random_model(shape: &str, dtype: &str, cancel: &AtomicBool) -> anyhow::Result<PathBuf> {
    let folder = dirs::cache_dir().context("this system names no cache folder for the random model")?.join("hymba");
    let file = folder.join(format!("random-{shape}-{dtype}-{RANDOM_VERSION}.gguf"));
    if !file.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        terminal::note(&format!("making a model with random weights, once: {}", file.display()));
        random_checkpoint(shape, DType::from_name(dtype).context("the type is unknown")?, &file, cancel)?;
    }
    Ok(file)
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let random = args.shape.as_ref().map(|shape| random_model(shape, &args.r#type, cancel)).transpose()?;
    let start = Instant::now();
    let model = match &random {
        Some(file) => Model::open(file)?,
        None => args.model.open(!matches!(args.output, Format::Md), cancel)?,
    };
    if args.speculate.speculate {
        return measure_speculation(args, &model, cancel);
    }
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = if args.threads.is_empty() { vec![cores] } else { args.threads.clone() };
    let tests = [(Test::Prefill, &args.prompt), (Test::Decode, &args.predict), (Test::FirstToken, &args.ttft)];
    let plan = BenchPlan {
        tests: tests
            .into_iter()
            .flat_map(|(kind, list)| list.iter().map(move |&n| (kind, n)))
            .chain(args.predict.iter().flat_map(|&n| args.batch.iter().map(move |&texts| (Test::Together(texts), n))))
            .chain(args.verify.iter().map(|&n| (Test::Verify, n)))
            .filter(|t| t.1 > 0)
            .collect(),
        depths: args.depth.clone(),
        threads,
        repeat: args.repeat,
        profile: args.profile,
    };
    let options = SessionOptions {
        context: Some(plan.context()),
        threads: plan.threads.iter().max().and_then(|&n| NonZeroUsize::new(n)),
        cache: args.cache_type,
        ..SessionOptions::default()
    };
    let mut session = new_session(&model, &options, cancel)?;
    let opening = start.elapsed();
    let bar = if terminal::draws() { ProgressBar::new(plan.steps()) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{bar:20} {percent:>3} % {elapsed:>4}  {wide_msg}")?);
    let mut failed = None;
    let result = measure(&model, &mut session, &plan, opening, cancel, &bar, &mut |row| {
        if matches!(args.output, Format::Jsonl) && failed.is_none() {
            failed = terminal::out().json(&report::row_json(row), false).err();
        }
    });
    bar.finish_and_clear();
    if let Some(error) = failed {
        return Err(error.into());
    }
    let results = result?;
    let mut out = terminal::out();
    match args.output {
        Format::Md => out.write_all(report::markdown(&results).as_bytes())?,
        Format::Csv => out.write_all(report::csv(&results).as_bytes())?,
        Format::Json => out.json(&report::json(&results), true)?,
        Format::Jsonl => {}
    }
    Ok(())
}

/// `--speculate`.
fn measure_speculation(args: &Args, model: &Model, cancel: &AtomicBool) -> anyhow::Result<()> {
    if matches!(args.output, Format::Csv | Format::Jsonl) {
        return Err(Usage("--speculate prints md or json; choose one with -o".into()).into());
    }
    let predict = args.predict.first().copied().unwrap_or_default();
    let extent = Extent { depths: &args.depth, repeat: args.repeat, predict };
    let prepared = speculate::prepare(&args.speculate, model, &extent)?;
    let options = SessionOptions {
        context: Some(prepared.context),
        threads: args.threads.first().and_then(|&n| NonZeroUsize::new(n)),
        cache: args.cache_type,
        ..SessionOptions::default()
    };
    let mut session = new_session(model, &options, cancel)?;
    let results = speculate::measure(prepared, model, &mut session, &extent, cancel)?;
    let mut out = terminal::out();
    match args.output {
        Format::Json => out.json(&speculate::json(&results), true)?,
        _ => out.write_all(speculate::markdown(&results).as_bytes())?,
    }
    Ok(())
}
