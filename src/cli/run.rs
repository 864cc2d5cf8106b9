//! `hymba run`: continue a text.

mod output;
mod report;
mod stored;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    escape::EscapeArgs,
    model::ModelArgs,
    options::{SamplingArgs, SessionArgs, list_devices},
    prompt::PromptArgs,
    terminal,
    usage::Usage,
};
use anyhow::Context;
use clap::{builder::NonEmptyStringValueParser, value_parser};
use hymba::{
    Error,
    engine::{
        Model, Timeline,
        generate::{Generation, Request, StopReason, Timings, generate},
    },
    sample::{Sampler, SamplingParams},
    text::{StopMatcher, Tokenizer},
};
use output::Output;
use report::Report;
use stored::Checkpointed;

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
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    escape: EscapeArgs,
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

/// Memory for the checkpoints that --prompt-cache keeps, and for those to go back to before a stop string.
const CHECKPOINT_BYTES: usize = 256_000_000;

/// Continues the prompt.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.session.list_devices {
        return Ok(list_devices()?);
    }
    // Flags first: a wrong one should not have to wait for the prompt or the model.
    args.sampling.apply(SamplingParams::default())?;
    let stops = args.escape.stops(&args.stop, args.quiet)?;
    StopMatcher::new(&stops).map_err(|e| Usage(format!("--stop: {e}")))?;
    args.stored.check()?;
    let text = args.prompt.read(cancel, args.stored.existing_session().is_none(), &args.escape)?;

    let start = Instant::now();
    let model = args.model.open(args.quiet)?;
    let tokenizer = model.tokenizer_until(cancel)?;
    let mut run = Run::open(args, cancel, &model, &tokenizer)?;
    let load = start.elapsed();
    let prompt = run.read_prompt(text)?;
    let done = run.generate(&prompt, &stops)?;
    run.report(load, &prompt, &done)
}

/// A text that is continued.
struct Run<'a> {
    args: &'a Args,
    cancel: &'a AtomicBool,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    timeline: Timeline<'a>,
    sampler: Sampler,
    output: Output,
}

/// What is continued.
struct Prompt {
    text: String,
    /// Ids that are read already.
    history: Vec<u32>,
    /// Ids to read.
    ids: Vec<u32>,
    /// What it took to read `history`.
    timings: Timings,
    /// How many ids the prompt cache knew.
    cached: Option<usize>,
}

impl<'a> Run<'a> {
    /// Opens a session: a new one, or that of the --session file.
    fn open(
        args: &'a Args,
        cancel: &'a AtomicBool,
        model: &'a Model,
        tokenizer: &'a Tokenizer,
    ) -> anyhow::Result<Self> {
        let params = args.sampling.of_model(model, args.quiet)?;
        let mut sampler = Sampler::new(params, args.sampling.seed()?);
        let mut timeline = Timeline::new(args.session.open(model, args.quiet, cancel)?, CHECKPOINT_BYTES);
        if let Some(path) = args.stored.existing_session() {
            model.fingerprint_until(cancel)?;
            sampler = stored::resume(&mut timeline, path)?;
            sampler.set_params(args.sampling.apply(sampler.params().clone())?);
            if let Some(seed) = args.sampling.seed {
                sampler.set_seed(seed);
            }
        }
        if let Some(eos) = tokenizer.eos().filter(|_| args.ignore_eos) {
            sampler.ban(eos);
        }
        Ok(Self { args, cancel, model, tokenizer, timeline, sampler, output: Output::new(args.json) })
    }

    /// Shows the prompt and, with a prompt cache, reads it.
    fn read_prompt(&mut self, text: String) -> anyhow::Result<Prompt> {
        let history = self.timeline.ids();
        let begins = history.is_empty();
        // Before the text takes memory many times its length, or is shown.
        self.check_room(self.tokenizer.least_tokens(&text))?;
        let ids = match (begins, text.is_empty()) {
            (true, _) => self.tokenizer.encode(&text, true)?,
            (false, true) => Vec::new(),
            (false, false) => self.tokenizer.encode_more(&text)?,
        };
        self.check_room(ids.len())?;
        if !self.args.no_display_prompt {
            let shown = if begins { &self.tokenizer.decode(&ids) } else { &text };
            self.output.show(shown).context("cannot write the text")?;
        }
        let Some(path) = &self.args.stored.prompt_cache else {
            return Ok(Prompt { text, history, ids, timings: Timings::default(), cached: None });
        };
        let timings =
            stored::read_cached(&mut self.timeline, &self.args.stored, path, &ids, &self.sampler, self.cancel)?;
        let cached = Some(ids.len().saturating_sub(timings.prompt_tokens));
        Ok(Prompt { text, history: ids, ids: Vec::new(), timings, cached })
    }

    /// Fails unless `needed` more tokens fit.
    fn check_room(&self, needed: usize) -> hymba::Result<()> {
        let context = self.timeline.context();
        let free = context - if self.args.stored.prompt_cache.is_some() { 0 } else { self.timeline.steps().len() };
        if needed > free { Err(Error::ContextFull { needed, free, context }) } else { Ok(()) }
    }

    /// Generates what follows, and shows it.
    fn generate(&mut self, prompt: &Prompt, stops: &[String]) -> anyhow::Result<Generation> {
        let Self { args, cancel, tokenizer, timeline, sampler, output, .. } = self;
        let request = Request {
            history: &prompt.history,
            prompt: &prompt.ids,
            limit: usize::try_from(args.predict).ok(),
            stops,
            timings: prompt.timings,
            cancel: Some(cancel),
        };
        let goes_back = !args.stop.is_empty() && args.stored.session.is_some() && !args.stored.session_ro;
        let mut timeline = Checkpointed::new(timeline, goes_back);
        let done = generate(&mut timeline, tokenizer, sampler, &request, &mut |text| output.show(text));
        output.finish()?;
        Ok(done?)
    }

    /// Saves the session and reports how the text ended.
    fn report(self, load: Duration, prompt: &Prompt, done: &Generation) -> anyhow::Result<()> {
        let Self { args, model, tokenizer, mut timeline, sampler, mut output, .. } = self;
        if let Some(why) = timeline.fallback_reason().filter(|_| !args.quiet) {
            terminal::note(&terminal::instead(why));
        }
        if let Some(path) = args.stored.session.as_ref().filter(|_| !args.stored.session_ro) {
            stored::keep(&mut timeline, &args.stored, path, tokenizer, &sampler, done)?;
        }
        let session = timeline.session();
        let report =
            Report { model, prompt: &prompt.text, cached: prompt.cached, seed: sampler.seed(), load, generation: done };
        if args.json {
            output.print(&report.json(session))?;
        } else if !args.quiet && done.stop != StopReason::BrokenPipe {
            if done.stop == StopReason::ContextFull {
                terminal::note(&format!("the context of {} tokens is full; -c makes it larger", session.context()));
            }
            let measured = done.stop != StopReason::Interrupted; // who stopped it does not want to wait
            terminal::note(&report.summary(session, measured));
        }
        if done.stop == StopReason::Interrupted { Err(Error::Cancelled.into()) } else { Ok(()) }
    }
}
