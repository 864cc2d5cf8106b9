//! `hymba run --batch`: many prompts from a file, some of them at once. The weights are read once for all that are at work,
//! and each text is the one that it would be alone.

mod answers;
mod prompts;

use std::{
    collections::BTreeMap,
    path::PathBuf,
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
    constrain::Constraint,
    engine::{
        Model,
        generate::StopReason,
        scheduler::{Event, Events, Job, Scheduler, SchedulerOptions, Taken, Usage as Took},
    },
    sample::{SamplingParams, Setting},
    text::{Message, Role, StopMatcher, Template, Tokenizer},
};
use serde_json::{Value, json};

use super::Args;
use crate::cli::{
    bar::Bar,
    hints::Place,
    json::JSON_VERSION,
    options::{Limit, beyond_training, count},
    terminal,
    usage::{Reported, Usage, output_file},
    wording::{counted, rate},
};
use answers::{Answered, Answers};
use prompts::{Line, Lines, Request};

/// Flags for many prompts.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Batch processing")]
pub struct BatchArgs {
    /// Generate from every line of FILE: JSON objects with `prompt` or `messages`, and settings of their own (see
    /// docs/json.md). Lines that OUT has an answer to are skipped
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with_all = ["text", "prompt", "file", "session",
          "prompt_cache", "json", "jsonl", "verbose"])]
    pub batch: Option<PathBuf>,
    /// Write the answers to OUT, one JSON object per line, in the order of the prompts
    #[arg(short, long, value_name = "OUT", requires = "batch")]
    output: Option<PathBuf>,
    /// Number of prompts that are processed at once [default: 4]
    #[arg(long, value_name = "N", requires = "batch", value_parser = count(1..=256))]
    parallel: Option<usize>,
}

/// Prompts that are prepared or held for their turn, for each that is at work: one that takes long does not keep the others.
const AHEAD: usize = 16;

/// What the flags say for every prompt.
pub struct Defaults {
    pub stops: Vec<String>,
    pub constraint: Option<Arc<Constraint>>,
}

/// What became of a prompt.
type Outcome = Result<Done, String>;

/// A text.
struct Done {
    text: String,
    ids: Vec<u32>,
    stop: StopReason,
    took: Took,
}

/// Collects a job's text, and hands it over when it is over.
struct Collector {
    place: usize,
    text: String,
    ids: Vec<u32>,
    done: Sender<(usize, Result<Done, Error>)>,
}

impl Events for Collector {
    fn take(&mut self, event: Event) -> Taken {
        let outcome = match event {
            Event::Started(_) | Event::Prompt(_) => return Taken::Yes,
            Event::Token { id, text, .. } => {
                self.ids.push(id);
                self.text.push_str(&text);
                return Taken::Yes;
            }
            Event::Done { text, stop, usage: took } => {
                let text = std::mem::take(&mut self.text) + &text;
                Ok(Done { text, ids: std::mem::take(&mut self.ids), stop, took })
            }
            Event::Failed(e) => Err(e),
        };
        if self.done.send((self.place, outcome)).is_ok() { Taken::Yes } else { Taken::Gone }
    }
}

/// Answers every line of the file `input`.
pub fn run(
    args: &Args,
    model: Model,
    tokenizer: Tokenizer,
    defaults: Defaults,
    cancel: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let (Some(input), Some(output)) = (&args.batch.batch, &args.batch.output) else {
        return Err(Usage("--batch: name a file for the answers with -o".into()).into());
    };
    output_file("--output", output)?;
    let mut lines = Lines::open(input)?;
    let (answers, answered) = Answers::open(output)?;
    let cannot = || format!("cannot read {}", input.display());
    let total = check_answered(&mut lines, &answered, cancel).with_context(cannot)?;
    lines.rewind().with_context(cannot)?;
    for _ in &answered {
        lines.next().with_context(cannot)?;
    }

    let options = args.session.options();
    model.read_meta_tokens(options.threads, cancel)?;
    let (model, tokenizer) = (Arc::new(model), Arc::new(tokenizer));
    let slots = args.batch.parallel.unwrap_or(4).min((total - answered.len()).max(1));
    let options = SchedulerOptions { session: options, slots, queue: 2 * slots, ..SchedulerOptions::default() };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options)?;
    if !args.quiet {
        scheduler.fallback().into_iter().for_each(terminal::warn);
        beyond_training(&model, scheduler.context()).iter().for_each(|warning| terminal::warn(warning));
    }
    let preparation = Preparation::new(args, &model, &tokenizer, &scheduler, defaults)?;
    let failed = answered.iter().filter(|answer| answer.is_error()).count();
    let mut batch = Batch { preparation, answers, total, written: answered.len(), failed, generated: 0 };
    let start = Instant::now();
    batch.run(&mut lines, &scheduler, slots, cancel, !args.quiet).map_err(|e| match e.downcast_ref() {
        Some(Error::Cancelled) => e,
        _ => e.context(format!("{} stays as far as it is written; the same command goes on", output.display())),
    })?;
    let Batch { answers, written, failed, generated, .. } = batch;
    answers.finish()?;
    scheduler.drain();
    if !args.quiet {
        let mut parts = vec![format!("{} answered", counted(written, "prompt"))];
        if !answered.is_empty() {
            parts.push(format!("{} before", answered.len()));
        }
        if failed > 0 {
            parts.push(format!("{} with an error", failed));
        }
        let speed = generated as f64 / start.elapsed().as_secs_f64().max(1e-9);
        parts.push(format!("generated {}, {}", counted(generated, "token"), rate(speed)));
        terminal::note(&parts.join(" · "));
    }
    if failed > 0 { Err(Reported.into()) } else { Ok(()) }
}

/// Returns how many lines there are. Fails if those that are answered are others.
fn check_answered(lines: &mut Lines, answered: &[Answered], cancel: &AtomicBool) -> anyhow::Result<usize> {
    let mut total = 0;
    while let Some(line) = lines.next()? {
        if let Some(answer) = answered.get(total) {
            let number = line.number;
            let is_same = answer.line == number && answer.input_hash == line.hash();
            ensure!(
                is_same,
                "line {number} is not the one that was answered before; name another file for the answers"
            );
        }
        total += 1;
        Error::check_cancelled(cancel)?;
    }
    ensure!(answered.len() <= total, "there are more answers than prompts; name another file for the answers");
    Ok(total)
}

/// Makes jobs of lines.
struct Preparation<'a> {
    args: &'a Args,
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    /// Strings by which the model begins another turn.
    template_stops: Vec<String>,
    system: Option<String>,
    sampling: SamplingParams,
    defaults: Defaults,
    context: usize,
    cancel: Arc<AtomicBool>,
}

impl<'a> Preparation<'a> {
    fn new(
        args: &'a Args,
        model: &Model,
        tokenizer: &Arc<Tokenizer>,
        scheduler: &Scheduler,
        defaults: Defaults,
    ) -> anyhow::Result<Self> {
        let template = model.chat_template(tokenizer)?;
        if args.chat && template.is_none() {
            return Err(Usage("--chat: the model has no chat template; leave it out".into()).into());
        }
        Ok(Self {
            args,
            tokenizer: tokenizer.clone(),
            template_stops: template.as_ref().map(Template::stops).transpose()?.unwrap_or_default(),
            template,
            system: args.system.as_ref().map(|text| args.escape.text("--system", text)).transpose()?,
            sampling: args.sampling.of_model(model, args.quiet)?,
            defaults,
            context: scheduler.context(),
            cancel: Arc::default(),
        })
    }

    /// Returns the job that a line asks for.
    fn job(&self, request: Request, events: Collector) -> anyhow::Result<Job> {
        let (prompt, template_stops) = self.prompt(&request)?;
        let Request { max_tokens, stop, ignore_eos, seed, frequency_penalty, presence_penalty, logit_bias, .. } =
            &request;
        let limit = match (max_tokens, self.args.predict) {
            (Some(most), _) => usize::try_from(*most).ok(),
            (None, predict) => predict.and_then(|Limit(limit)| limit),
        };
        let mut bias: Vec<(u32, f32)> = logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
        if ignore_eos.unwrap_or(self.args.ignore_eos) {
            bias.extend(self.tokenizer.ends().iter().map(|&end| (end, f32::NEG_INFINITY)));
        }
        let seed = seed.map_or_else(|| self.args.sampling.seed(), Ok)?;
        let (frequency, presence) = (frequency_penalty.unwrap_or_default(), presence_penalty.unwrap_or_default());
        let sampling = self.sampling(&request)?;
        let own = match stop {
            Some(_) => request.stop.map(|stop| stop.into_list()).unwrap_or_default(),
            None => self.defaults.stops.clone(),
        };
        let stops = [&*own, template_stops].concat();
        StopMatcher::new(&stops)?;
        Ok(Job {
            limit,
            stops,
            sampling,
            seed,
            bias,
            frequency_penalty: frequency,
            presence_penalty: presence,
            matching: self.defaults.constraint.as_ref().map(|constraint| constraint.begin()),
            cancel: self.cancel.clone(),
            ..Job::new(prompt, Box::new(events))
        })
    }

    /// Returns the ids of a prompt, and the strings by which its chat template ends a reply.
    fn prompt(&self, request: &Request) -> anyhow::Result<(Vec<u32>, &[String])> {
        let given: Vec<Message<'_>>;
        match (&request.prompt, &request.messages) {
            (Some(text), _) if !self.args.chat => {
                ensure!(request.system.is_none(), "`system` needs `messages`, or --chat");
                return Ok((self.encode(text, true)?, &[]));
            }
            (Some(text), _) => given = vec![Message::new(Role::User, text)],
            (None, messages) => given = messages.iter().flatten().map(prompts::Said::message).collect(),
        }
        let Some(template) = &self.template else {
            bail!("`messages` need a chat template, and the model has none; give a `prompt`")
        };
        let begins_with_system = given.first().is_some_and(|message| message.role == Role::System);
        let system = request.system.as_ref().or(self.system.as_ref().filter(|_| !begins_with_system));
        ensure!(
            !(begins_with_system && system.is_some()),
            "give the system message once: as `system` or in `messages`"
        );
        let system = system.map(|text| Message::new(Role::System, text));
        let messages: Vec<_> = system.into_iter().chain(given).collect();
        Ok((self.encode(&template.render(&messages, true)?, false)?, &self.template_stops))
    }

    fn encode(&self, text: &str, with_bos: bool) -> hymba::Result<Vec<u32>> {
        hymba::limits::check_prompt(text, "the prompt")?;
        let context = self.context;
        let full = |needed| Error::ContextFull { needed, free: context, context };
        // Before the text takes memory many times its length.
        let least = self.tokenizer.least_tokens(text);
        if least > context {
            return Err(full(least));
        }
        let ids = self.tokenizer.encode(text, with_bos)?;
        if ids.len() > context { Err(full(ids.len())) } else { Ok(ids) }
    }

    fn sampling(&self, request: &Request) -> anyhow::Result<SamplingParams> {
        let mut params = self.sampling.clone();
        let own = [
            ("temperature", request.temperature),
            ("top_k", request.top_k),
            ("top_p", request.top_p),
            ("min_p", request.min_p),
            ("repeat_penalty", request.repeat_penalty),
            ("repeat_last_n", request.repeat_last_n),
        ];
        for (setting, (name, value)) in Setting::ALL.into_iter().zip(own) {
            if let Some(value) = value {
                params.set(setting, value).map_err(|why| anyhow!("`{name}` {value}: the value {why}"))?;
            }
        }
        Ok(params)
    }
}

/// Prompts on their way.
struct Batch<'a> {
    preparation: Preparation<'a>,
    answers: Answers,
    total: usize,
    /// Answers in the file.
    written: usize,
    /// Those of them that are errors.
    failed: usize,
    generated: usize,
}

/// A prompt whose answer is awaited.
struct Pending {
    number: usize,
    hash: String,
    id: Option<Value>,
    seed: u64,
    outcome: Option<Outcome>,
}

impl Batch<'_> {
    /// Answers the rest of `lines`.
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
        let (mut next, mut at_work, mut is_read) = (self.written, 0, false);
        loop {
            while !is_read && at_work < 2 * slots && pending.len() < AHEAD * slots {
                Error::check_cancelled(cancel)?;
                let Some(line) = lines.next()? else {
                    is_read = true;
                    break;
                };
                let collector = Collector { place: next, text: String::new(), ids: Vec::new(), done: send.clone() };
                let prompt = self.submit(&line, collector, scheduler)?;
                at_work += usize::from(prompt.outcome.is_none());
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
                Ok((place, outcome)) => {
                    at_work -= 1;
                    let outcome = match outcome {
                        Ok(Done { stop: StopReason::Interrupted, .. }) | Err(Error::Cancelled) => {
                            bail!(Error::Cancelled)
                        }
                        Ok(done) => Ok(done),
                        Err(e) => Err(terminal::one_line(&e.into(), Place::CommandLine)),
                    };
                    if let Some(prompt) = pending.get_mut(&place) {
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

    /// Puts a line to work; what can't be is an error of that line.
    fn submit(&self, line: &Line, collector: Collector, scheduler: &Scheduler) -> anyhow::Result<Pending> {
        let (id, request) = match &line.bytes {
            Ok(bytes) => Request::of(bytes),
            Err(why) => (None, Err(anyhow!("{why}"))),
        };
        let mut pending = Pending { number: line.number, hash: line.hash(), id, seed: 0, outcome: None };
        match request.and_then(|request| self.preparation.job(request, collector)) {
            Ok(job) => {
                pending.seed = job.seed;
                scheduler.submit(job).map_err(|why| anyhow!("the queue refused a prompt: {why:?}"))?;
            }
            Err(e) if matches!(e.downcast_ref(), Some(Error::Cancelled)) => return Err(e),
            Err(e) => pending.outcome = Some(Err(terminal::one_line(&e, Place::CommandLine))),
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
                let Took { prompt_tokens, cached_tokens, generated_tokens, prompt, generation, .. } = done.took;
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
            Some(Err(why)) => {
                self.failed += 1;
                answer["error"] = json!({ "message": why });
            }
            None => return Ok(()),
        }
        self.answers.add(&answer)?;
        self.written += 1;
        Ok(())
    }
}
