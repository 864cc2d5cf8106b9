//! `hymba bench`: prefill and decode speed, absolute and as a share of the machine's limits.

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

/// Benchmark prefill and decode speed.
///
/// Measures prefill (pp), decode (tg) and time to first token (ttft) at each depth and thread count. Each run is
/// bracketed by measurements of the machine's limits: memory read bandwidth, which bounds decode, and the rate of 8-bit
/// multiply-adds, which bounds prefill. Runs whose limits differ by more than 10 % before and after are discarded: the
/// machine was not idle.
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
  hymba bench --shape hymba-1.5b --speculate --replay tasks.json

Environment:
  HYMBA_KERNELS=NAME  CPU kernels to use instead of the fastest, such as scalar or avx2")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Benchmark a randomly initialized model of this shape (generated once, then cached)
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = PossibleValuesParser::new(SHAPES))]
    shape: Option<String>,
    /// Quantization type of the random weights
    #[arg(long, value_name = "TYPE", default_value = "q4_0", requires = "shape",
          value_parser = PossibleValuesParser::new(DType::ALL.map(DType::name)))]
    r#type: String,
    /// Prompt lengths in tokens, a comma-separated list (0: skip prefill)
    #[arg(short, long, value_name = "N", default_value = "512", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    prompt: Vec<usize>,
    /// Numbers of tokens to generate, a comma-separated list (0: skip decode)
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    predict: Vec<usize>,
    /// Context depths in tokens, a comma-separated list
    #[arg(short, long, value_name = "N", default_value = "0", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    depth: Vec<usize>,
    /// Prompt lengths for time to first token, a comma-separated list (0: skip)
    #[arg(long, value_name = "N", default_value = "16", value_delimiter = ',', value_parser = count(0..=1 << 20))]
    ttft: Vec<usize>,
    /// Batch sizes, a comma-separated list: sequences decoded together, --predict tokens each
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = count(1..=256))]
    batch: Vec<usize>,
    /// Decode segment lengths, a comma-separated list: passes of N tokens with logits for each, as in draft verification
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count(1..=DECODE_TOKENS as u64))]
    verify: Vec<usize>,
    #[command(flatten)]
    speculate: SpeculateArgs,
    /// Thread counts, a comma-separated list [default: one thread per available core]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = count(1..=512))]
    threads: Vec<usize>,
    /// Repetitions of each measurement, after one warm-up run
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = count(1..=1000))]
    repeat: usize,
    /// KV cache data type
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = cache_type())]
    cache_type: CacheType,
    /// Also show a per-operation time breakdown
    #[arg(long)]
    profile: bool,
    /// Output format
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
    /// JSON Lines, one object per row as it is measured
    Jsonl,
}

/// Version of the random weights.
const RANDOM_VERSION: u32 = 2;

/// Returns the path of the randomly initialized model in the cache folder, generating it first if it is missing.
fn random_model(shape: &str, dtype: &str, cancel: &AtomicBool) -> anyhow::Result<PathBuf> {
    let folder = dirs::cache_dir()
        .context("there is no cache folder on this system for the random model; use -m FILE")?
        .join("hymba");
    let file = folder.join(format!("random-{shape}-{dtype}-{RANDOM_VERSION}.gguf"));
    if !file.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        terminal::note(&format!("generating a randomly initialized model (once): {}", file.display()));
        random_checkpoint(shape, DType::from_name(dtype).context("unknown type")?, &file, cancel)?;
    }
    Ok(file)
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    if args.speculate.speculate && matches!(args.output, Format::Csv | Format::Jsonl) {
        return Err(Usage("--speculate prints md or json; choose one with -o".into()).into());
    }
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
            .chain(args.predict.iter().flat_map(|&n| args.batch.iter().map(move |&texts| (Test::Batch(texts), n))))
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
