//! `hymba bench --speculate`: the cost of passes with several tokens, and the benefit of speculative decoding.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use anyhow::Context;
use hymba::{
    Error, Speculate, Speculator,
    engine::{
        Model, Session,
        generate::{Request, TokenModel, generate_with},
        speculate::{Counts, Forced},
    },
    forward::DECODE_TOKENS,
    sample::{Sampler, SamplingParams},
    text::{Message, Role},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::json::JSON_VERSION;

/// Flags for measuring speculative decoding.
#[derive(Debug, clap::Args)]
pub struct SpeculateArgs {
    /// Measure speculative decoding instead: passes of 1 to 8 tokens at each depth, and the tasks of --tasks or
    /// --replay
    #[arg(long)]
    pub speculate: bool,
    /// Tasks for the model: a JSON list of objects with `name`, `prompt` (or `text`, for plain continuation) and
    /// optionally `answer`, a given answer to measure too
    #[arg(long, value_name = "FILE", requires = "speculate", conflicts_with = "replay")]
    tasks: Option<PathBuf>,
    /// Replay the texts of a previous --tasks run (-o json), regardless of what this model would generate
    #[arg(long, value_name = "FILE", requires = "speculate")]
    replay: Option<PathBuf>,
}

/// A task in the file.
#[derive(Deserialize)]
struct Task {
    name: String,
    prompt: Option<String>,
    text: Option<String>,
    answer: Option<String>,
}

/// A text to process token by token, as if the model generated it.
#[derive(Clone, Deserialize, Serialize)]
struct Replayed {
    task: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Written {
    texts: Vec<Replayed>,
}

/// The cost of a pass by number of tokens.
struct Pass {
    depth: usize,
    tokens: usize,
    seconds: f64,
    /// Relative to a pass of one token.
    ratio: f64,
}

/// The benefit of speculative decoding for a text.
struct Gain {
    text: Replayed,
    /// Seconds per run without and with speculative decoding.
    runs: Vec<[f64; 2]>,
    /// Counts of the last run.
    counts: Counts,
}

/// The extent of the measurements.
pub struct Extent<'a> {
    pub depths: &'a [usize],
    pub repeat: usize,
    /// Maximum number of tokens of an answer.
    pub predict: usize,
}

/// Returns the texts and the context size that the measurements need.
pub fn prepare(args: &SpeculateArgs, model: &Model, extent: &Extent<'_>) -> anyhow::Result<Prepared> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let broken = |path: &Path| format!("{} is not a list of tasks", path.display());
    let mut texts = Vec::new();
    if let Some(path) = &args.replay {
        let vocab = model.config().vocab as u32;
        let written: Written = serde_json::from_str(&read(path)?).with_context(|| broken(path))?;
        texts = written.texts;
        if texts.iter().flat_map(|text| text.prompt_ids.iter().chain(&text.ids)).any(|&id| id >= vocab) {
            anyhow::bail!("{}: it contains token ids outside of this model's vocabulary", path.display());
        }
    } else if let Some(path) = &args.tasks {
        let tasks: Vec<Task> = serde_json::from_str(&read(path)?).with_context(|| broken(path))?;
        let tokenizer = model.tokenizer()?;
        let template = model.chat_template(&tokenizer)?;
        for Task { name, prompt, text, answer } in tasks {
            let prompt_ids = match (prompt, text, &template) {
                (Some(prompt), None, Some(template)) => {
                    tokenizer.encode(&template.render(&[Message::new(Role::User, &prompt)], true)?, false)?
                }
                (Some(text), None, None) | (None, Some(text), _) => tokenizer.encode(&text, true)?,
                _ => anyhow::bail!("{}: the task {name} needs either a prompt or a text", path.display()),
            };
            let mut add = |task, ids| texts.push(Replayed { task, prompt_ids: prompt_ids.clone(), ids });
            add(name.clone(), Vec::new()); // the model's own answer is generated later
            if let Some(answer) = answer {
                add(format!("{name}, given answer"), tokenizer.encode_more(&answer)?);
            }
        }
    }
    let longest = texts.iter().map(|text| text.prompt_ids.len() + text.ids.len().max(extent.predict)).max();
    let passes = extent.depths.iter().max().unwrap_or(&0) + DECODE_TOKENS;
    Ok(Prepared { texts, context: longest.unwrap_or(0).max(passes) })
}

/// The inputs, read before a session is opened.
pub struct Prepared {
    texts: Vec<Replayed>,
    /// The required context size.
    pub context: usize,
}

/// The results.
pub struct Results {
    model: String,
    kernels: &'static str,
    threads: usize,
    passes: Vec<Pass>,
    gains: Vec<Gain>,
}

/// Runs the measurements.
pub fn measure(
    prepared: Prepared,
    model: &Model,
    session: &mut Session<'_>,
    extent: &Extent<'_>,
    cancel: &AtomicBool,
) -> anyhow::Result<Results> {
    let mut passes = Vec::new();
    for &depth in extent.depths {
        passes.extend(measure_passes(session, depth, extent.repeat, cancel)?);
    }
    let mut gains = Vec::new();
    for mut text in prepared.texts {
        if text.ids.is_empty() {
            text.ids = greedy_answer(model, session, &text.prompt_ids, extent.predict, cancel)?;
        }
        gains.push(measure_text(session, text, extent.repeat, cancel)?);
    }
    let (kernels, threads) = (session.kernels(), session.threads());
    Ok(Results { model: model.file().to_owned(), kernels, threads, passes, gains })
}

/// Measures passes of 1 to 8 tokens in turn, several times.
fn measure_passes(
    session: &mut Session<'_>,
    depth: usize,
    repeat: usize,
    cancel: &AtomicBool,
) -> hymba::Result<Vec<Pass>> {
    let vocab = session.model().config().vocab as u32;
    let mut rng = ChaCha8Rng::seed_from_u64(depth as u64);
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..vocab)).collect() };
    session.clear()?;
    if depth > 0 {
        session.prefill(&ids(depth), cancel)?;
    }
    let checkpoint = session.checkpoint(false)?;
    let mut times = vec![Vec::new(); DECODE_TOKENS];
    for run in 0..=2 * repeat {
        for tokens in 1..=DECODE_TOKENS {
            Error::check_cancelled(cancel)?;
            let (ids, start) = (ids(tokens), Instant::now());
            let mut pass = session.verify(&ids, None)?;
            pass.logits(0)?;
            pass.commit(0, tokens);
            drop(pass);
            if run > 0 {
                times[tokens - 1].push(start.elapsed().as_secs_f64());
            }
            session.restore(&checkpoint);
        }
    }
    let seconds: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    let pass = |(&time, tokens)| Pass { depth, tokens, seconds: time, ratio: time / seconds[0] };
    Ok(seconds.iter().zip(1..).map(pass).collect())
}

/// Returns the model's greedy answer to a prompt.
fn greedy_answer(
    model: &Model,
    session: &mut Session<'_>,
    prompt: &[u32],
    limit: usize,
    cancel: &AtomicBool,
) -> hymba::Result<Vec<u32>> {
    session.clear()?;
    let tokenizer = model.tokenizer()?;
    let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..model.sampling()? }, 0);
    let request = Request { prompt, limit: Some(limit), cancel: Some(cancel), ..Request::default() };
    let speculator = &mut Speculator::new(Speculate::Off);
    Ok(generate_with(session, &tokenizer, &mut sampler, &request, speculator, &mut |_| Ok(()))?.ids)
}

/// Processes a text without and with speculative decoding, in alternating order.
fn measure_text(session: &mut Session<'_>, text: Replayed, repeat: usize, cancel: &AtomicBool) -> hymba::Result<Gain> {
    session.clear()?;
    session.prefill(&text.prompt_ids, cancel)?;
    let start = session.checkpoint(false)?;
    let (mut runs, mut counts) = (Vec::new(), Counts::default());
    for run in 0..=repeat {
        let mut seconds = [0.0; 2];
        for i in if run % 2 == 0 { [0, 1] } else { [1, 0] } {
            session.restore(&start);
            let (time, counted) = replay(session, &text, [Speculate::Off, Speculate::Auto][i], cancel)?;
            seconds[i] = time.as_secs_f64();
            if i == 1 {
                counts = counted;
            }
        }
        if run > 0 {
            runs.push(seconds);
        }
    }
    Ok(Gain { text, runs, counts })
}

/// Processes a text as if the model generated it, and returns the time. As in a new session, the costs of passes are
/// not known yet.
fn replay(
    session: &mut Session<'_>,
    text: &Replayed,
    speculate: Speculate,
    cancel: &AtomicBool,
) -> hymba::Result<(Duration, Counts)> {
    let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 0);
    let (mut speculator, mut counts) = (Speculator::new(speculate), Counts::default());
    let start = Instant::now();
    speculator.read(&text.prompt_ids);
    while let Some(&id) = text.ids.get(counts.tokens) {
        Error::check_cancelled(cancel)?;
        let (mut at, remaining) = (counts.tokens, text.ids.len() - counts.tokens - 1);
        let max_draft = remaining.min(session.max_guesses());
        let more = speculator.advance(session, id, max_draft, &Forced(&[]), &mut |logits| {
            sampler.sample(logits, &[]);
            at += 1;
            Ok(text.ids.get(at).copied())
        })?;
        counts.add(more);
    }
    Ok((start.elapsed(), counts))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

impl Pass {
    /// Returns the acceptance rate at which a pass breaks even.
    fn break_even(&self) -> Option<f64> {
        let expected = |p: f64| (0..self.tokens).map(|guesses| p.powi(guesses as i32)).sum::<f64>();
        if self.tokens == 1 || self.ratio > self.tokens as f64 {
            return None;
        }
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..40 {
            let middle = (low + high) / 2.0;
            if expected(middle) < self.ratio { low = middle } else { high = middle }
        }
        Some(high)
    }
}

impl Gain {
    /// Returns tokens per second without and with speculative decoding: the medians of the runs.
    fn rates(&self) -> [f64; 2] {
        [0, 1].map(|i| {
            let mut seconds: Vec<f64> = self.runs.iter().map(|run| run[i]).collect();
            self.text.ids.len() as f64 / median(&mut seconds)
        })
    }

    /// Returns the speedup: the median over the pairs of runs.
    fn speedup(&self) -> f64 {
        let mut all: Vec<f64> = self.runs.iter().map(|[single, several]| single / several).collect();
        median(&mut all)
    }

    fn per_pass(&self) -> f64 {
        self.counts.tokens as f64 / self.counts.passes.max(1) as f64
    }

    /// Returns the share of the time spent on drafting.
    fn drafting(&self) -> f64 {
        self.counts.drafting.as_secs_f64() / self.runs.last().map_or(f64::NAN, |run| run[1])
    }

    fn accepted(&self) -> Option<f64> {
        (self.counts.drafted > 0).then(|| self.counts.accepted as f64 / self.counts.drafted as f64)
    }
}

/// Formats the results as Markdown tables.
pub fn markdown(results: &Results) -> String {
    let mut out = String::new();
    let Results { model, kernels, threads, passes, gains } = results;
    let _ = writeln!(out, "model: {model} · kernels: {kernels} · threads: {threads}\n");
    let _ = writeln!(
        out,
        "| tokens per pass | depth | ms | relative to 1 token | break-even acceptance |\n|---|---|---|---|---|"
    );
    for pass in passes {
        let even = pass.break_even().map_or(String::new(), |share| format!("{:.0} %", 1e2 * share));
        let (ms, ratio) = (1e3 * pass.seconds, pass.ratio);
        let _ = writeln!(out, "| {} | {} | {ms:.2} | {ratio:.2} | {even} |", pass.tokens, pass.depth);
    }
    if !gains.is_empty() {
        let _ = writeln!(
            out,
            "\n| task | tokens | tok/s, single steps | tok/s | speedup | tokens per pass | accepted | drafting |\n\
             |---|---|---|---|---|---|---|---|"
        );
    }
    for gain in gains {
        let [single, several] = gain.rates();
        let accepted = gain.accepted().map_or(String::new(), |share| format!("{:.0} %", 1e2 * share));
        let _ = writeln!(
            out,
            "| {} | {} | {single:.1} | {several:.1} | {:.2} | {:.2} | {accepted} | {:.2} % |",
            gain.text.task,
            gain.text.ids.len(),
            gain.speedup(),
            gain.per_pass(),
            1e2 * gain.drafting()
        );
    }
    out
}

/// Returns the results as one JSON object, which --replay reads.
pub fn json(results: &Results) -> Value {
    let Results { model, kernels, threads, passes, gains } = results;
    let pass = |pass: &Pass| {
        json!({"tokens": pass.tokens, "depth": pass.depth, "seconds": pass.seconds, "ratio": pass.ratio,
               "break_even_acceptance": pass.break_even()})
    };
    let text = |gain: &Gain| {
        let [single, several] = gain.rates();
        json!({
            "task": gain.text.task, "prompt_ids": gain.text.prompt_ids, "ids": gain.text.ids,
            "tokens_per_second": {"off": single, "auto": several}, "speedup": gain.speedup(), "runs": gain.runs,
            "passes": gain.counts.passes, "tokens_per_pass": gain.per_pass(), "drafted_tokens": gain.counts.drafted,
            "accepted_tokens": gain.counts.accepted, "accepted_share": gain.accepted(),
            "drafting_share": gain.drafting(),
        })
    };
    json!({
        "version": JSON_VERSION, "program_version": env!("CARGO_PKG_VERSION"), "model": model, "kernels": kernels,
        "threads": threads, "passes": passes.iter().map(pass).collect::<Vec<_>>(),
        "texts": gains.iter().map(text).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_break_even_acceptance_follows_from_the_cost_of_a_pass() {
        let even = |tokens, ratio| Pass { depth: 0, tokens, seconds: 1.0, ratio }.break_even();
        assert!((even(2, 1.1).unwrap() - 0.1).abs() < 1e-6);
        assert!((even(3, 1.75).unwrap() - 0.5).abs() < 1e-6);
        assert_eq!((even(1, 1.0), even(3, 3.5)), (None, None));
    }
}
