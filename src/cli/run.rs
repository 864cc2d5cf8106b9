//! `hymba run`: generate text from a prompt.

mod answer;
mod batch;
mod output;
mod report;
mod stored;

use std::{
    cell::{Cell, RefCell},
    io::{self, IsTerminal},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    constraint::{self, ConstraintArgs},
    escape::EscapeArgs,
    model::ModelArgs,
    options::{Limit, REPLY_LIMIT, SamplingArgs, SessionArgs, limit, list_devices},
    progress::Bar,
    prompt::PromptArgs,
    speculate::SpeculateArgs,
    terminal,
    tools::{self, Answers, Resources, ToolArgs},
    usage::{Incomplete, Usage},
    wording::{counted, grouped},
};
use answer::answer;
use clap::builder::NonEmptyStringValueParser;
use hymba::{
    Error,
    constrain::{Constraint, Shape},
    engine::{
        Conversation, Model, Timeline,
        conversation::{Options, Overflow},
        generate::{Generation, Request, StopReason, Timings, generate_with},
        scheduler::SchedulerOptions,
        speculate::Speculator,
        timeline::Watch,
    },
    sample::{Sampler, SamplingParams},
    text::{Message, Role, StopMatcher, Template, Tokenizer},
};
use output::{Format, Output};
use report::Report;
use stored::Checkpointed;

/// Generate text from a prompt.
///
/// Output is streamed to stdout; timings go to stderr. Generation stops at the end-of-sequence token, at -n or --stop,
/// when the context is full, or on Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba run \"Once upon a time\"
  hymba run --chat \"What is the capital of France?\"
  hymba run -m hymba-1.5b-q4.gguf -n 100 --temp 0 \"The capital of France is\"
  cat article.txt | hymba run --chat \"Summarize this text:\"
  cat story.txt | hymba run --stop \"The end\" --no-display-prompt --quiet > rest.txt
  hymba run --json --seed 7 -f prompt.txt | jq -r .text
  hymba run --session story.session -n 100 \"Once upon a time\"
  hymba run --session story.session -n 100
  hymba run --batch prompts.jsonl -o answers.jsonl --parallel 8
  hymba run --chat --json-schema person.json \"Tell me about a girl.\"
  hymba run --chat --tools tools.json --tool-command ./answer --tool-yes \"What is the weather like in Oslo?\"")]
pub struct Args {
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Apply the model's chat template to the prompt
    #[arg(long, conflicts_with_all = ["session", "prompt_cache"])]
    chat: bool,
    /// System prompt, with --chat
    #[arg(long, alias = "system-prompt", value_name = "TEXT", allow_hyphen_values = true, requires = "chat")]
    system: Option<String>,
    /// Maximum number of tokens to generate (-1: no limit) [default at a terminal: the model file's, else 512;
    /// otherwise no limit]
    #[arg(short = 'n', long, aliases = ["n-predict", "max-tokens"], value_name = "N", allow_negative_numbers = true,
          value_parser = limit)]
    predict: Option<Limit>,
    /// Stop at STRING (not printed); repeatable
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    escape: EscapeArgs,
    /// Ignore the end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Do not echo the prompt
    #[arg(long)]
    no_display_prompt: bool,
    /// Print the result as one JSON object when generation finishes
    #[arg(long)]
    json: bool,
    /// Print events as they happen, one JSON object per line
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
    /// Suppress the model notice and the timing summary
    #[arg(short, long)]
    quiet: bool,
    /// Add loading time and memory bandwidth to the timing summary
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    #[command(flatten)]
    batch: batch::BatchArgs,
    #[command(flatten)]
    constraint: ConstraintArgs,
    #[command(flatten)]
    tools: ToolArgs,
    #[command(flatten)]
    stored: stored::StoredArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Memory for checkpoints: those of --prompt-cache, and those to rewind to before a stop string.
const CHECKPOINT_BYTES: usize = 256_000_000;

/// Continues the prompt.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.session.list_devices {
        return Ok(list_devices()?);
    }
    // Check flags before reading the prompt or loading the model.
    args.sampling.apply(SamplingParams::default())?;
    let stops = args.escape.stops(&args.stop, args.quiet)?;
    StopMatcher::new(&stops).map_err(|e| Usage(format!("--stop: {e}")))?;
    args.stored.check()?;
    let shape = args.constraint.shape(cancel)?;
    if !args.tools.is_empty() && (!args.chat || args.batch.batch.is_some()) {
        let problem = "--tools and --context-file require --chat and cannot be used with --batch";
        return Err(Usage(problem.into()).into());
    }
    args.tools.check(shape.is_some())?;
    if args.batch.batch.is_some() {
        args.speculate.check_batch()?;
        args.batch.check()?;
        return run_batch(args, stops, shape, cancel);
    }
    let (resources, answers) = (args.tools.read(cancel)?, args.tools.answers()?);
    let text = args.prompt.read(cancel, args.stored.existing_session().is_none(), &args.escape)?;

    let start = Instant::now();
    let (model, notice) = args.model.open_unannounced(args.quiet, cancel)?;
    let tokenizer = model.tokenizer_until(cancel)?;
    let compile = |(name, shape): (String, _)| constraint::compile(&name, &shape, &tokenizer, cancel);
    let compiling = Instant::now();
    let constraint = shape.map(compile).transpose()?;
    let compile = constraint.as_ref().map(|_| compiling.elapsed());
    notice.show();
    if !args.tools.is_empty() {
        let run = Run::open(args, cancel, &model, &tokenizer)?;
        return run.answer(&text, resources, answers, constraint, stops, (start.elapsed(), compile));
    }
    let chat = if args.chat { Some(ChatPrompt::new(args, &model, &tokenizer, &text)?) } else { None };
    if chat.is_none() && !args.quiet && model.metadata().get("tokenizer.chat_template").is_some() {
        terminal::note("the model has a chat template; apply it with --chat, or use `hymba chat`");
    }
    let mut run = Run::open(args, cancel, &model, &tokenizer)?;
    let load = start.elapsed();
    let stops = [&*stops, chat.as_ref().map_or(&[], |chat| &*chat.stops)].concat();
    let prompt = run.read_prompt(text, chat)?;
    let done = run.generate(&prompt, &stops, constraint.as_deref())?;
    run.report(load, compile, &prompt, &done)
}

/// Continues the prompts of a file.
fn run_batch(
    args: &Args,
    stops: Vec<String>,
    shape: Option<(String, Shape)>,
    cancel: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let (model, notice) = args.model.open_unannounced(args.quiet, cancel)?;
    let tokenizer = model.tokenizer_until(cancel)?;
    let compile = |(name, shape): (String, _)| constraint::compile(&name, &shape, &tokenizer, cancel);
    let constraint = shape.map(compile).transpose()?;
    let defaults = batch::Defaults {
        chat: args.chat,
        system: args.system.as_ref().map(|text| args.escape.text("--system", text)).transpose()?,
        limit: args.predict.and_then(|Limit(limit)| limit),
        stops,
        ignore_eos: args.ignore_eos,
        sampling: args.sampling.clone(),
        constraint,
        quiet: args.quiet,
    };
    let (session, speculate) = (args.session.options(), args.speculate.drafts.speculate);
    let options = SchedulerOptions { session, speculate, ..SchedulerOptions::default() };
    batch::run(&args.batch, (model, tokenizer, notice), options, defaults, cancel)
}

/// The prompt as rendered by the chat template.
struct ChatPrompt {
    ids: Vec<u32>,
    /// Strings that start another turn.
    stops: Vec<String>,
}

impl ChatPrompt {
    fn new(args: &Args, model: &Model, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Self> {
        let (template, system) = (Self::template(model, tokenizer)?, Self::system(args)?);
        let system = system.as_deref().map(|text| Message::new(Role::System, text));
        let messages: Vec<_> = system.into_iter().chain([Message::new(Role::User, text)]).collect();
        let ids = tokenizer.encode(&template.render(&messages, true)?, false)?;
        Ok(Self { ids, stops: template.stops()? })
    }

    fn template(model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<Template> {
        let template = model.chat_template(tokenizer)?;
        Ok(template.ok_or_else(|| Usage("--chat: the model has no chat template".into()))?)
    }

    fn system(args: &Args) -> anyhow::Result<Option<String>> {
        Ok(args.system.as_ref().map(|text| args.escape.text("--system", text)).transpose()?)
    }
}

/// The text being continued.
struct Run<'a> {
    args: &'a Args,
    cancel: &'a AtomicBool,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    timeline: Timeline<'a>,
    sampler: Sampler,
    speculator: Speculator,
    limit: Option<usize>,
    output: Output,
}

/// The full prompt.
struct Prompt {
    text: String,
    /// The part of it that is shown.
    shown: String,
    /// Ids that are already processed.
    history: Vec<u32>,
    /// Ids to process.
    ids: Vec<u32>,
    /// Timings of processing `history`.
    timings: Timings,
    /// Number of ids restored from the prompt cache.
    cached: Option<usize>,
}

impl<'a> Run<'a> {
    /// Opens a new session or the one in the --session file.
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
            sampler.set_params(args.sampling.apply_flags(sampler.params().clone())?);
            if let Some(seed) = args.sampling.seed {
                sampler.set_seed(seed);
            }
        }
        if args.ignore_eos {
            tokenizer.ends().iter().for_each(|&end| sampler.ban(end));
        }
        let format = match (args.json, args.jsonl) {
            (true, _) => Format::Json,
            (_, true) => Format::JsonLines,
            _ => Format::Text,
        };
        let is_interactive = format == Format::Text && io::stdout().is_terminal();
        let limit = match args.predict {
            Some(Limit(limit)) => limit,
            None if is_interactive => Some(model.reply_limit()?.unwrap_or(REPLY_LIMIT)),
            None => None,
        };
        let speculator = args.speculate.speculator(tokenizer, cancel)?;
        let output = Output::new(format);
        Ok(Self { args, cancel, model, tokenizer, timeline, sampler, speculator, limit, output })
    }

    /// Tokenizes the prompt and, with a prompt cache, processes it.
    fn read_prompt(&mut self, text: String, chat: Option<ChatPrompt>) -> anyhow::Result<Prompt> {
        let timings = Timings::default();
        if let Some(ChatPrompt { ids, .. }) = chat {
            return Ok(Prompt { text, shown: String::new(), history: Vec::new(), ids, timings, cached: None });
        }
        let history = self.timeline.ids();
        let begins = history.is_empty();
        // Before the text is tokenized, which takes many times its length in memory, or shown.
        self.check_room(self.tokenizer.least_tokens(&text))?;
        let ids = match (begins, text.is_empty()) {
            (true, _) => self.tokenizer.encode(&text, true)?,
            (false, true) => Vec::new(),
            (false, false) => self.tokenizer.encode_more(&text)?,
        };
        self.check_room(ids.len())?;
        let shown = match (self.args.no_display_prompt, begins) {
            (true, _) => String::new(),
            (false, true) => self.tokenizer.decode(&ids),
            (false, false) => text.clone(),
        };
        let Some(path) = &self.args.stored.prompt_cache else {
            return Ok(Prompt { text, shown, history, ids, timings, cached: None });
        };
        let bar = Bar::tokens(!self.args.quiet);
        let watch = Watch { cancel: self.cancel, progress: &|done, total| bar.show(done, total) };
        let timings = stored::read_cached(&mut self.timeline, &self.args.stored, path, &ids, &self.sampler, &watch)?;
        let cached = Some(ids.len().saturating_sub(timings.prompt_tokens));
        Ok(Prompt { text, shown, history: ids, ids: Vec::new(), timings, cached })
    }

    /// Fails unless `needed` more tokens fit.
    fn check_room(&self, needed: usize) -> hymba::Result<()> {
        let context = self.timeline.context();
        let free = context - if self.args.stored.prompt_cache.is_some() { 0 } else { self.timeline.steps().len() };
        if needed > free { Err(Error::ContextFull { needed, free, context }) } else { Ok(()) }
    }

    /// Generates the continuation and shows it after the prompt.
    fn generate(
        &mut self,
        prompt: &Prompt,
        stops: &[String],
        constraint: Option<&Constraint>,
    ) -> anyhow::Result<Generation> {
        let Self { args, cancel, tokenizer, timeline, sampler, speculator, limit, output, .. } = self;
        let request = Request {
            history: &prompt.history,
            prompt: &prompt.ids,
            limit: *limit,
            stops,
            timings: prompt.timings,
            cancel: Some(cancel),
            constraint,
            ..Request::default()
        };
        let may_rewind = !args.stop.is_empty() && args.stored.session.is_some() && !args.stored.session_ro;
        let (bar, output) = (Bar::tokens(!args.quiet), RefCell::new(output));
        // The bar and the prompt would share a line: clear the bar first.
        let (prompt, failed) = (Cell::new(Some(&*prompt.shown)), RefCell::new(None));
        let progress = |done, total| {
            bar.show(done, total);
            if done < total {
                return;
            }
            if let Some(prompt) = prompt.take() {
                *failed.borrow_mut() = output.borrow_mut().show_prompt(prompt).err();
            }
        };
        let mut timeline = Checkpointed::new(timeline, may_rewind, &progress);
        let show = &mut |text: &str| match failed.take() {
            Some(e) => Err(e),
            None => output.borrow_mut().show(text),
        };
        let done = generate_with(&mut timeline, tokenizer, sampler, &request, speculator, show);
        output.borrow_mut().finish()?;
        match failed.take() {
            Some(e) => Err(anyhow::Error::new(e).context("cannot write the text")),
            None => Ok(done?),
        }
    }

    /// Generates the reply to `message` with tools or contexts, and reports how it ended. `times` are those of loading
    /// and compiling.
    fn answer(
        self,
        message: &str,
        resources: Resources,
        answers: Option<Answers>,
        constraint: Option<Arc<Constraint>>,
        stops: Vec<String>,
        times: (Duration, Option<Duration>),
    ) -> anyhow::Result<()> {
        let Self { args, cancel, model, tokenizer, timeline, sampler, speculator, limit, mut output } = self;
        let options = Options {
            template: Some(ChatPrompt::template(model, tokenizer)?),
            system: ChatPrompt::system(args)?,
            limit,
            stops,
            parse_special: true,
            overflow: Overflow::Stop,
            constraint,
            tools: resources.tools,
            tool_choice: resources.choice,
            contexts: resources.contexts,
        };
        let mut conversation = Conversation::new(timeline, tokenizer, sampler, options).map_err(tools::of_flag)?;
        conversation.set_speculator(speculator);
        let done = answer(&mut conversation, message, answers.as_ref(), &mut output, args.quiet, cancel)?;
        let calls = conversation.tools().map(|_| tools::json(&conversation.calls()));
        let (seed, (load, compile)) = (conversation.sampler().seed(), times);
        let report = Report { model, prompt: message, cached: None, seed, load, compile, calls, generation: &done };
        report_end(args, cancel, conversation.timeline(), limit, &mut output, &report)
    }

    /// Saves the session and reports how the text ended.
    fn report(
        self,
        load: Duration,
        compile: Option<Duration>,
        prompt: &Prompt,
        done: &Generation,
    ) -> anyhow::Result<()> {
        let Self { args, cancel, model, tokenizer, mut timeline, sampler, limit, mut output, .. } = self;
        if let Some(path) = args.stored.session.as_ref().filter(|_| !args.stored.session_ro) {
            stored::save(&mut timeline, &args.stored, path, tokenizer, &sampler, done)?;
        }
        let (seed, calls) = (sampler.seed(), None);
        let report =
            Report { model, prompt: &prompt.text, cached: prompt.cached, seed, load, compile, calls, generation: done };
        report_end(args, cancel, &mut timeline, limit, &mut output, &report)
    }
}

/// Reports how a text ended. A cancelled text, or one that ended before it matched its constraint, is an error.
fn report_end(
    args: &Args,
    cancel: &AtomicBool,
    timeline: &mut Timeline<'_>,
    limit: Option<usize>,
    output: &mut Output,
    report: &Report<'_>,
) -> anyhow::Result<()> {
    if let Some(reason) = timeline.fallback_reason().filter(|_| !args.quiet) {
        terminal::warn(&terminal::describe_fallback(reason));
    }
    let (session, done) = (timeline.session(), report.generation);
    if args.json || args.jsonl {
        output.print(report.json(session))?;
    } else if !args.quiet && done.stop != StopReason::BrokenPipe {
        match (done.stop, limit) {
            (StopReason::ContextFull, _) => {
                let context = grouped(session.context());
                terminal::warn(&format!("context full ({context} tokens); increase it with -c"));
            }
            (StopReason::Length, _) => terminal::warn(&format!(
                "the output is incomplete: it was cut after {}; raise the limit (-n) or the context (-c)",
                counted(done.ids.len(), "token")
            )),
            (StopReason::Limit, Some(limit)) if args.predict.is_none() => {
                terminal::note(&format!(
                    "stopped after {}; change the limit with -n (-1: none)",
                    counted(limit, "token")
                ));
            }
            _ => {}
        }
        terminal::note(&report.summary(session));
        // After an interrupt, do not wait for the measurement.
        if args.verbose && done.stop != StopReason::Interrupted {
            terminal::note(&report.details(session, cancel)?);
        }
    }
    match done.stop {
        StopReason::Interrupted => Err(Error::Cancelled.into()),
        StopReason::Length => Err(Incomplete.into()),
        _ => Ok(()),
    }
}
