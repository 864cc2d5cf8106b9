//! `hymba run --batch`: processes many prompts from a file, several at once. They share reads of the weights, and each
//! text is the same as if it were generated alone.

mod answers;
mod preparation;
mod prompts;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use hymba::{
    Error,
    engine::{
        Model,
        generate::StopReason,
        scheduler::{Delivery, Event, Events, Scheduler, SchedulerOptions, Usage as JobUsage},
    },
    text::Tokenizer,
};
use serde_json::{Value, json};

use crate::cli::{
    hints::Interface,
    json::JSON_VERSION,
    model::Notice,
    options::{beyond_training, count},
    progress::Bar,
    terminal,
    usage::{Reported, Usage, output_file},
    wording::{counted, grouped, rate},
};
use answers::{Answered, Answers};
pub use preparation::Defaults;
use preparation::Preparation;
use prompts::{Line, Lines, Request};

/// Flags for batch processing.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Batch processing")]
pub struct BatchArgs {
    /// Generate from every line of FILE, JSON objects with `prompt` or `messages` and optional settings (see
    /// docs/json.md). Lines with an answer in OUT are skipped
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with_all = ["text", "prompt", "file", "session",
          "prompt_cache", "json", "jsonl", "verbose"])]
    pub batch: Option<PathBuf>,
    /// Write the answers to OUT, one JSON object per line, in the order of the prompts
    #[arg(short, long, value_name = "OUT", requires = "batch")]
    output: Option<PathBuf>,
    /// Number of prompts processed at once [default: 4]
    #[arg(long, value_name = "N", requires = "batch", value_parser = count(1..=256))]
    parallel: Option<usize>,
}

impl BatchArgs {
    /// Returns the input and the output file.
    pub fn check(&self) -> Result<(&Path, &Path), Usage> {
        let (Some(input), Some(output)) = (&self.batch, &self.output) else {
            return Err(Usage("--batch requires an output file; add -o FILE".into()));
        };
        output_file("--output", output)?;
        Ok((input, output))
    }
}

/// Prompts prepared in advance per running one, so that a long text does not delay the others.
const PREPARED_PER_SLOT: usize = 16;

/// The result of a prompt.
type Outcome = Result<Done, String>;

/// A finished text.
struct Done {
    text: String,
    ids: Vec<u32>,
    stop: StopReason,
    usage: JobUsage,
}

/// Collects a job's text and passes it on when it is complete.
struct Collector {
    index: usize,
    text: String,
    ids: Vec<u32>,
    done: Sender<(usize, Result<Done, Error>)>,
}

impl Events for Collector {
    fn deliver(&mut self, event: Event) -> Delivery {
        let outcome = match event {
            Event::Started(_) | Event::Prompt(_) => return Delivery::Delivered,
            Event::Token { id, text, .. } => {
                self.ids.push(id);
                self.text.push_str(&text);
                return Delivery::Delivered;
            }
            Event::Done { text, stop, usage } => {
                let text = std::mem::take(&mut self.text) + &text;
                Ok(Done { text, ids: std::mem::take(&mut self.ids), stop, usage })
            }
            Event::Failed(e) => Err(e),
        };
        if self.done.send((self.index, outcome)).is_ok() { Delivery::Delivered } else { Delivery::Closed }
    }
}

/// Answers the prompts of the file in `flags`.
pub fn run(
    flags: &BatchArgs,
    (model, tokenizer, notice): (Model, Tokenizer, Notice),
    options: SchedulerOptions,
    defaults: Defaults,
    cancel: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let (input, output) = flags.check()?;
    let mut lines = Lines::open(input)?;
    let (answers, answered) = Answers::open(output)?;
    let cannot = || format!("cannot read {}", input.display());
    let total = check_answered(&mut lines, &answered, cancel).with_context(cannot)?;
    lines.rewind().with_context(cannot)?;
    for _ in &answered {
        lines.next().with_context(cannot)?;
    }

    notice.show();
    let quiet = defaults.quiet;
    model.read_meta_tokens(options.session.threads, cancel)?;
    let (model, tokenizer) = (Arc::new(model), Arc::new(tokenizer));
    let slots = flags.parallel.unwrap_or(4).min((total - answered.len()).max(1));
    let options = SchedulerOptions { slots, queue: 2 * slots, ..options };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options)?;
    if !quiet {
        scheduler.fallback().into_iter().for_each(terminal::warn);
        beyond_training(&model, scheduler.context()).iter().for_each(|warning| terminal::warn(warning));
    }
    let preparation = Preparation::new(&model, &tokenizer, scheduler.context(), defaults)?;
    let (earlier, failed) = (answered.len(), answered.iter().filter(|answer| answer.is_error()).count());
    let mut batch = Batch { preparation, answers, total, written: earlier, failed, generated: 0 };
    let start = Instant::now();
    batch.run(&mut lines, &scheduler, slots, cancel, !quiet).map_err(|e| match e.downcast_ref() {
        Some(Error::Cancelled) => e,
        _ => e.context(format!("{} keeps the answers so far; run the same command again to resume", output.display())),
    })?;
    let Batch { answers, written, failed, generated, .. } = batch;
    answers.finish()?;
    scheduler.drain();
    if !quiet {
        let mut prompts = format!("{} completed", counted(written - failed, "prompt"));
        if failed > 0 {
            prompts += &format!(", {} failed", grouped(failed));
        }
        if earlier > 0 {
            prompts += &format!(" ({} from an earlier run)", grouped(earlier));
        }
        let mut tokens = format!("generated {}", counted(generated, "token"));
        if generated > 0 {
            tokens += &format!(", {}", rate(generated as f64 / start.elapsed().as_secs_f64().max(1e-9)));
        }
        let mut parts = vec![prompts, tokens];
        let metrics = scheduler.metrics();
        if metrics.drafted > 0 {
            let share = metrics.accepted as f64 / metrics.drafted as f64;
            parts.push(format!("{:.0} % of drafts accepted", 1e2 * share));
        }
        terminal::note(&parts.join(" · "));
    }
    if failed > 0 { Err(Reported.into()) } else { Ok(()) }
}

/// Returns the number of lines. Fails if existing answers belong to other prompts.
fn check_answered(lines: &mut Lines, answered: &[Answered], cancel: &AtomicBool) -> anyhow::Result<usize> {
    let mut total = 0;
    while let Some(line) = lines.next()? {
        if let Some(answer) = answered.get(total) {
            let number = line.number;
            let is_same = answer.line == number && answer.input_hash == line.hash();
            ensure!(is_same, "line {number} differs from the line that was answered before; use another output file");
        }
        total += 1;
        Error::check_cancelled(cancel)?;
    }
    ensure!(answered.len() <= total, "there are more answers than prompts; use another output file");
    Ok(total)
}

/// A batch in progress.
struct Batch {
    preparation: Preparation,
    answers: Answers,
    total: usize,
    /// Number of answers in the file.
    written: usize,
    /// Number of errors among them.
    failed: usize,
    generated: usize,
}

/// A prompt without an answer yet.
struct Pending {
    number: usize,
    hash: String,
    id: Option<Value>,
    seed: u64,
    outcome: Option<Outcome>,
}

impl Batch {
    /// Answers the remaining `lines`.
    fn run(
        &mut self,
        lines: &mut Lines,
        scheduler: &Scheduler,
        slots: usize,
        cancel: &AtomicBool,
        shows: bool,
    ) -> anyhow::Result<()> {
        let bar = Bar::prompts(shows);
        let (send, receive) = channel();
        let mut pending: BTreeMap<usize, Pending> = BTreeMap::new();
        let (mut next, mut running, mut is_read) = (self.written, 0, false);
        loop {
            while !is_read && running < 2 * slots && pending.len() < PREPARED_PER_SLOT * slots {
                Error::check_cancelled(cancel)?;
                let Some(line) = lines.next()? else {
                    is_read = true;
                    break;
                };
                let collector = Collector { index: next, text: String::new(), ids: Vec::new(), done: send.clone() };
                let prompt = self.submit(&line, collector, scheduler)?;
                running += usize::from(prompt.outcome.is_none());
                pending.insert(next, prompt);
                next += 1;
            }
            while let Some(prompt) = pending.first_entry().filter(|prompt| prompt.get().outcome.is_some()) {
                self.write(prompt.remove())?;
                bar.show(self.written, self.total);
            }
            if pending.is_empty() && is_read {
                return Ok(());
            }
            match receive.recv_timeout(Duration::from_millis(20)) {
                Ok((index, outcome)) => {
                    running -= 1;
                    let outcome = match outcome {
                        Ok(Done { stop: StopReason::Interrupted, .. }) | Err(Error::Cancelled) => {
                            bail!(Error::Cancelled)
                        }
                        Ok(done) => Ok(done),
                        Err(e) => Err(terminal::one_line(&e.into(), Interface::CommandLine)),
                    };
                    if let Some(prompt) = pending.get_mut(&index) {
                        prompt.outcome = Some(outcome);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(!scheduler.is_ended(), "the thread that runs the model has ended")
                }
                Err(RecvTimeoutError::Disconnected) => {}
            }
            Error::check_cancelled(cancel)?;
        }
    }

    /// Submits a line; if it is invalid, that is recorded as its answer.
    fn submit(&self, line: &Line, collector: Collector, scheduler: &Scheduler) -> anyhow::Result<Pending> {
        let (id, request) = match &line.bytes {
            Ok(bytes) => Request::of(bytes),
            Err(reason) => (None, Err(anyhow!("{reason}"))),
        };
        let mut pending = Pending { number: line.number, hash: line.hash(), id, seed: 0, outcome: None };
        match request.and_then(|request| self.preparation.job(request, Box::new(collector))) {
            Ok(job) => {
                pending.seed = job.seed;
                scheduler.submit(job).map_err(|reason| anyhow!("the queue refused a prompt: {reason:?}"))?;
            }
            Err(e) if matches!(e.downcast_ref(), Some(Error::Cancelled)) => return Err(e),
            Err(e) => pending.outcome = Some(Err(terminal::one_line(&e, Interface::CommandLine))),
        }
        Ok(pending)
    }

    fn write(&mut self, prompt: Pending) -> anyhow::Result<()> {
        let Pending { number, hash, id, seed, outcome } = prompt;
        let mut answer = json!({ "version": JSON_VERSION, "line": number, "input_hash": hash });
        if let Some(id) = id {
            answer["id"] = id;
        }
        match outcome {
            Some(Ok(done)) => {
                let per_second = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
                let JobUsage { prompt_tokens, cached_tokens, generated_tokens, prompt, generation, .. } = done.usage;
                self.generated += generated_tokens;
                answer["text"] = done.text.into();
                answer["ids"] = done.ids.into();
                answer["prompt_tokens"] = prompt_tokens.into();
                answer["cached_tokens"] = cached_tokens.into();
                answer["generated_tokens"] = generated_tokens.into();
                answer["stop_reason"] = done.stop.name().into();
                answer["seed"] = seed.into();
                answer["timings"] = json!({
                    "prompt_seconds": prompt.as_secs_f64(),
                    "prompt_tokens_per_second": per_second(prompt_tokens - cached_tokens.min(prompt_tokens), prompt),
                    "generation_seconds": generation.as_secs_f64(),
                    "generated_tokens_per_second": per_second(generated_tokens, generation),
                });
            }
            Some(Err(reason)) => {
                self.failed += 1;
                answer["error"] = json!({ "message": reason });
            }
            None => return Ok(()),
        }
        self.answers.add(&answer)?;
        self.written += 1;
        Ok(())
    }
}
