//! `hymba run`: continue a text.

mod stored;

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{builder::NonEmptyStringValueParser, value_parser};
use hymba::{
    Error,
    engine::{
        Model, Session, Timeline,
        generate::{Generation, Request, StopReason, Timings, generate},
    },
    sample::{Params, Sampler},
    text::{StopMatcher, Tokenizer},
};
use serde_json::json;

use super::{
    model::ModelArgs,
    options::{SamplingArgs, SessionArgs, list_devices},
    prompt::PromptArgs,
    terminal,
    usage::Usage,
};

/// Continue a text.
///
/// The text comes as it is generated, on standard output; speed is told on standard error. It ends where the model
/// ends it, where the context is full, or where a flag says so; Ctrl-C ends it too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba run \"Once upon a time\"
  hymba run -m hymba-1.5b-q8_0.gguf -n 100 --temp 0 \"The capital of France is\"
  cat story.txt | hymba run --stop \"The end\" --no-display-prompt --quiet > rest.txt
  hymba run --json --seed 7 -f prompt.txt | jq .text
  hymba run --session story.session -n 100 \"Once upon a time\"
  hymba run --session story.session -n 100")]
pub struct Args {
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens to generate at most; -1: until the text ends or the context is full
    #[arg(short = 'n', long, value_name = "N", default_value = "-1", allow_negative_numbers = true,
          value_parser = value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    predict: i64,
    /// End where STRING appears, which is not shown; may be given several times
    #[arg(long, value_name = "STRING", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Go on where the model would end the text
    #[arg(long)]
    ignore_eos: bool,
    /// Show only what is generated
    #[arg(long)]
    no_display_prompt: bool,
    /// Print one JSON object, and nothing else, when the text has ended
    #[arg(long)]
    json: bool,
    /// Say neither which model is used nor how fast it was
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    stored: stored::StoredArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Memory for the places of a prompt that --prompt-cache keeps.
const MARK_BYTES: usize = 256_000_000;

/// Continues the prompt.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.session.list_devices {
        return Ok(list_devices()?);
    }
    // Flags first: a wrong one should not have to wait for the prompt or the model.
    args.sampling.apply(Params::default())?;
    StopMatcher::new(&args.stop).map_err(|e| Usage(format!("--stop: {e}")))?;
    args.stored.check()?;
    let existing = args.stored.existing_session();
    let prompt = args.prompt.read(cancel, existing.is_none())?;

    let start = Instant::now();
    let model = args.model.open(args.quiet)?;
    let tokenizer = Tokenizer::from_metadata(model.metadata(), model.file())?;
    let params = args.sampling.apply(Params::from_metadata(model.metadata(), model.file())?)?;
    let mut sampler = Sampler::new(params, args.sampling.seed()?);
    // Places to come back to are made for the prompt cache only.
    let mut timeline = Timeline::new(args.session.open(&model, args.quiet)?, MARK_BYTES);
    if let Some(path) = existing {
        sampler = stored::resume(&mut timeline, path)?;
        sampler.set_params(args.sampling.apply(sampler.params().clone())?);
        if let Some(seed) = args.sampling.seed {
            sampler.set_seed(seed);
        }
    }
    if let Some(eos) = tokenizer.eos().filter(|_| args.ignore_eos) {
        sampler.ban(eos);
    }
    let load = start.elapsed();

    let mut history = timeline.ids();
    let begins = history.is_empty();
    let mut ids = match (begins, prompt.is_empty()) {
        (true, _) => tokenizer.encode(&prompt, true)?,
        (false, true) => Vec::new(),
        (false, false) => tokenizer.encode_more(&prompt)?,
    };
    let mut out = io::stdout().lock();
    let mut ends_line = true;
    let mut show = |text: &str| {
        if args.json || text.is_empty() {
            return Ok(());
        }
        ends_line = text.ends_with('\n');
        out.write_all(text.as_bytes())?;
        out.flush()
    };
    if !args.no_display_prompt {
        show(&if begins { tokenizer.decode(&ids) } else { prompt.clone() }).context("cannot write the text")?;
    }
    let reading = Instant::now();
    if let Some(path) = &args.stored.prompt_cache {
        stored::read_cached(&mut timeline, path, &ids, &sampler, cancel)?;
        history = std::mem::take(&mut ids);
    }
    let reading = reading.elapsed();
    let limit = usize::try_from(args.predict).ok();
    let request = Request { history: &history, prompt: &ids, limit, stops: &args.stop };
    let mut done = generate(&mut timeline, &tokenizer, &mut sampler, &request, cancel, &mut show);
    if let (Ok(done), Some(_)) = (&mut done, &args.stored.prompt_cache) {
        done.timings.prompt_tokens = timeline.evaluated() - done.timings.decode_steps;
        done.timings.prompt = reading;
    }
    // A person gets a new line for what comes next, be it an error; a file gets the text as it is.
    if !ends_line && out.is_terminal() {
        writeln!(out)?;
    }
    let done = done?;
    if let Some(why) = timeline.taken_over().filter(|_| !args.quiet) {
        terminal::note(&terminal::instead(why));
    }
    let seed = sampler.seed();
    let cached = args.stored.prompt_cache.is_some().then(|| history.len() - done.timings.prompt_tokens);
    if let Some(path) = args.stored.session.as_ref().filter(|_| !args.stored.session_ro) {
        stored::keep(&mut timeline, path, &sampler, &done)?;
    }
    let session = timeline.session();
    if args.json {
        writeln!(out, "{}", report(&model, &prompt, &done, load, session.cache_bytes(), seed, cached))?;
        out.flush()?;
    } else if !args.quiet && done.stop != StopReason::BrokenPipe {
        if done.stop == StopReason::ContextFull {
            terminal::note(&format!("the context of {} tokens is full; -c makes it larger", session.context()));
        }
        terminal::note(&summary(&done.timings, load, &model, session, cached));
    }
    if done.stop == StopReason::Interrupted { Err(Error::Cancelled.into()) } else { Ok(()) }
}

/// The object that --json prints.
fn report(
    model: &Model,
    prompt: &str,
    done: &Generation,
    load: Duration,
    cache_bytes: usize,
    seed: u64,
    cached: Option<usize>,
) -> serde_json::Value {
    let t = &done.timings;
    json!({
        "model": model.file(),
        "prompt": prompt,
        "text": done.text,
        "ids": done.ids,
        "prompt_tokens": t.prompt_tokens,
        "cached_tokens": cached.unwrap_or_default(),
        "generated_tokens": t.generated_tokens,
        "stop_reason": done.stop.name(),
        "seed": seed,
        "cache_bytes": cache_bytes,
        "timings": {
            "load_seconds": load.as_secs_f64(),
            "prompt_seconds": t.prompt.as_secs_f64(),
            "prompt_tokens_per_second": t.prompt_rate(),
            "generation_seconds": t.generation.as_secs_f64(),
            "generated_tokens_per_second": t.decode_rate(),
        },
    })
}

/// The line about speed. Each decode step reads the weights and the cache once, so its speed is told as a share of what
/// the memory allows.
fn summary(t: &Timings, load: Duration, model: &Model, session: &mut Session<'_>, cached: Option<usize>) -> String {
    let mut parts = vec![
        format!("load {:.2} s", load.as_secs_f64()),
        format!("prompt {} tok, {:.1} tok/s", t.prompt_tokens, t.prompt_rate()),
    ];
    parts.extend(cached.map(|tokens| format!("{tokens} tok from the prompt cache")));
    let generated = format!("generated {} tok", t.generated_tokens);
    if let Some(gpu) = session.gpu() {
        parts.push(format!("{generated}, {:.1} tok/s on {gpu}", t.decode_rate()));
    } else if t.decode_steps > 0 {
        let read = (model.weight_bytes_per_token() + session.bytes_read_per_token()) as f64;
        let limit = session.read_bandwidth();
        let share = 100.0 * read * t.decode_rate() / limit;
        parts.push(format!("{generated}, {:.1} tok/s", t.decode_rate()));
        parts.push(format!("{share:.0}% of {:.1} GB/s", limit / 1e9));
    } else {
        parts.push(generated);
    }
    parts.push(format!("cache {:.1} MB", session.cache_bytes() as f64 / 1e6));
    parts.join(" | ")
}
