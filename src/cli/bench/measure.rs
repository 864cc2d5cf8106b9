//! The measurements of `hymba bench`.

use std::{
    num::NonZeroUsize,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use hymba::{
    Error, Result,
    backend::Profile,
    engine::{
        Model, Roofline, Session, Text,
        batch::{PassInput, Wanted},
    },
    forward::Phase,
    sample::{Sampler, SamplingParams},
    system,
};
use indicatif::ProgressBar;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What to measure: every combination of the lists' items.
pub struct BenchPlan {
    /// The tests, each with its number of tokens.
    pub tests: Vec<(Test, usize)>,
    /// Context depths: tokens already in the context.
    pub depths: Vec<usize>,
    pub threads: Vec<usize>,
    /// Repetitions after the warm-up.
    pub repeat: usize,
    pub profile: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Prefill,
    Decode,
    FirstToken,
    /// Batched decode of this many texts.
    Batch(usize),
    /// Passes over one decode segment, as in draft verification.
    Verify,
}

/// Passes per run of [`Test::Verify`].
const VERIFICATIONS: usize = 8;

impl BenchPlan {
    /// Returns the context size that the longest test needs.
    pub fn context(&self) -> usize {
        let needs =
            |&(kind, tokens): &(Test, usize)| if kind == Test::Verify { tokens * VERIFICATIONS } else { tokens };
        let longest = self.tests.iter().map(needs).max().unwrap_or(1);
        self.depths.iter().max().unwrap_or(&0) + longest
    }

    /// Returns the largest batch size.
    fn texts(&self) -> usize {
        let texts = |&(kind, _): &(Test, usize)| if let Test::Batch(texts) = kind { texts } else { 1 };
        self.tests.iter().map(texts).max().unwrap_or(1)
    }

    /// Returns the number of runs, for the progress bar.
    pub fn steps(&self) -> u64 {
        (self.depths.len() * (1 + self.threads.len() * self.tests.len() * (1 + self.repeat))) as u64
    }
}

/// One run of a test, with the roofline measured just before and just after it.
pub struct Trial {
    pub time: Duration,
    /// Time by operation and time spent sampling, if requested.
    pub profile: Option<(Profile, Duration)>,
    pub before: Roofline,
    pub after: Roofline,
}

/// The change of a limit during a run, as a log ratio, above which the machine was not idle.
const LIMIT_TOLERANCE: f64 = 0.1;

/// One row of the results.
pub struct Row {
    pub kind: Test,
    pub tokens: usize,
    pub depth: usize,
    pub threads: usize,
    pub runs: Vec<Trial>,
    /// Bytes read per token in decode; multiply-adds per token in prefill.
    pub work_per_token: f64,
    pub cache_bytes: usize,
}

impl Row {
    /// Returns the row's name in the style of llama-bench.
    pub fn name(&self) -> String {
        let name = match self.kind {
            Test::Prefill => format!("pp{}", self.tokens),
            Test::Decode => format!("tg{}", self.tokens),
            Test::FirstToken => format!("ttft {}", self.tokens),
            Test::Batch(texts) => format!("tg{} b{texts}", self.tokens),
            Test::Verify => format!("verify {}", self.tokens),
        };
        if self.depth == 0 { name } else { format!("{name} @ d{}", self.depth) }
    }

    /// Returns the batch size.
    pub fn texts(&self) -> usize {
        if let Test::Batch(texts) = self.kind { texts } else { 1 }
    }

    /// Returns the mean milliseconds per pass over a decode segment.
    pub fn pass_milliseconds(&self) -> Option<f64> {
        let values = self.values();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (self.kind == Test::Verify).then_some(1e3 * self.tokens as f64 / mean)
    }

    /// Returns the limit that bounds this test: read bandwidth if it is bandwidth-bound, else 8-bit multiply-adds per
    /// second.
    fn bound(&self, limits: &Roofline) -> f64 {
        match self.kind {
            Test::Prefill | Test::FirstToken => limits.int8_macs,
            Test::Decode | Test::Batch(_) | Test::Verify => limits.read_bytes,
        }
    }

    /// Whether the limit was stable during the run.
    fn is_steady(&self, run: &Trial) -> bool {
        (self.bound(&run.before) / self.bound(&run.after)).ln().abs() <= LIMIT_TOLERANCE
    }

    /// Whether the limit changed during every run.
    pub fn is_unstable(&self) -> bool {
        !self.runs.iter().any(|run| self.is_steady(run))
    }

    /// Returns the runs that count: those with a stable limit, or all if there are none.
    pub fn steady(&self) -> Vec<&Trial> {
        let unstable = self.is_unstable();
        self.runs.iter().filter(|run| unstable || self.is_steady(run)).collect()
    }

    /// Returns tokens per second of each run; for time to first token, milliseconds.
    pub fn values(&self) -> Vec<f64> {
        self.steady().into_iter().map(|run| self.value(run)).collect()
    }

    fn value(&self, run: &Trial) -> f64 {
        match self.kind {
            Test::FirstToken => run.time.as_secs_f64() * 1e3,
            Test::Verify => (VERIFICATIONS * self.tokens) as f64 / run.time.as_secs_f64(),
            _ => (self.texts() * self.tokens) as f64 / run.time.as_secs_f64(),
        }
    }

    /// Returns the mean limit over the runs.
    pub fn limit(&self) -> f64 {
        let runs = self.steady();
        runs.iter().map(|r| (self.bound(&r.before) + self.bound(&r.after)) / 2.0).sum::<f64>() / runs.len() as f64
    }

    /// Returns the runs' mean share of the limit.
    pub fn share(&self) -> Option<f64> {
        if !matches!(self.kind, Test::Prefill | Test::Decode) {
            return None;
        }
        let runs = self.steady();
        let share =
            |r: &&Trial| self.value(r) * self.work_per_token * 2.0 / (self.bound(&r.before) + self.bound(&r.after));
        Some(runs.iter().map(share).sum::<f64>() / runs.len() as f64)
    }
}

/// The roofline at a thread count, before and after the tests.
pub struct LimitRow {
    pub threads: usize,
    pub depth: usize,
    pub before: Roofline,
    pub after: Roofline,
}

pub struct Results {
    pub model: String,
    pub kernels: &'static str,
    pub weight_bytes: u64,
    pub state_bytes: u64,
    /// Time from opening the file to a session that is ready for a prompt.
    pub opening: Duration,
    pub peak_memory: Option<u64>,
    pub limits: Vec<LimitRow>,
    pub rows: Vec<Row>,
}

/// Measures everything in `plan`; `each` receives every row as it is finished.
pub fn measure(
    model: &Model,
    session: &mut Session<'_>,
    plan: &BenchPlan,
    opening: Duration,
    cancel: &AtomicBool,
    bar: &ProgressBar,
    each: &mut dyn FnMut(&Row),
) -> Result<Results> {
    let vocab = model.config().vocab as u32;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut text = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..vocab)).collect() };
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for &depth in &plan.depths {
        bar.set_message(format!("prefilling {depth} tokens"));
        session.clear()?;
        session.set_threads(plan.threads.iter().max().and_then(|&n| NonZeroUsize::new(n)).unwrap_or(NonZeroUsize::MIN));
        if depth > 0 {
            session.prefill(&text(depth), cancel)?;
        }
        let point = session.checkpoint(plan.texts() > 1)?;
        let (batch, first) = session.parts();
        let size = (first.context(), first.cache_type());
        let mut further_texts: Vec<Text> =
            (1..plan.texts()).map(|_| batch.text(size.0, size.1)).collect::<Result<_>>()?;
        bar.inc(1);
        for &threads in &plan.threads {
            session.set_threads(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN));
            let before = session.roofline(cancel)?;
            let mut after = before;
            for &(kind, tokens) in &plan.tests {
                let prompt = text(tokens.max(1));
                let mut row = Row {
                    kind,
                    tokens,
                    depth,
                    threads,
                    runs: Vec::new(),
                    work_per_token: match kind {
                        Test::Decode => {
                            let middle = depth + tokens / 2;
                            let cache = model.plan().read_bytes(middle, session.cache_type());
                            (model.weight_bytes_per_token() + cache) as f64
                        }
                        _ => model.weights().macs_per_token() as f64,
                    },
                    cache_bytes: session.cache_bytes(),
                };
                bar.set_message(format!("{} on {threads} threads", row.name()));
                for run in 0..=plan.repeat {
                    session.restore(&point);
                    let further_texts = &mut further_texts[..row.texts() - 1];
                    further_texts.iter_mut().for_each(|text| session.parts().0.restore(text, &point));
                    session.measure(plan.profile);
                    let before = after;
                    let (time, sampling) = once((session, further_texts), kind, &prompt, cancel)?;
                    let profile = plan.profile.then(|| (session.profile(), sampling));
                    session.measure(false);
                    Error::check_cancelled(cancel)?;
                    after = session.roofline(cancel)?;
                    if run > 0 {
                        row.runs.push(Trial { time, profile, before, after });
                    }
                    bar.inc(1);
                }
                each(&row);
                rows.push(row);
            }
            session.restore(&point);
            limits.push(LimitRow { threads, depth, before, after });
        }
    }
    Ok(Results {
        model: model.file().to_owned(),
        kernels: session.kernels(),
        weight_bytes: model.weight_bytes_per_token(),
        state_bytes: model.plan().state_bytes(),
        opening,
        peak_memory: system::peak_memory(),
        limits,
        rows,
    })
}

/// Runs a test once, with further texts for batched decode; returns its time, and the part spent sampling.
fn once(
    (session, further_texts): (&mut Session<'_>, &mut [Text]),
    kind: Test,
    prompt: &[u32],
    cancel: &AtomicBool,
) -> Result<(Duration, Duration)> {
    let mut sampler = Sampler::new(SamplingParams::default(), 0);
    let mut sampling = Duration::ZERO;
    let mut choose = |logits: &[f32], history: &[u32]| {
        let start = Instant::now();
        let id = sampler.sample(logits, history);
        sampling += start.elapsed();
        id
    };
    let start = Instant::now();
    match kind {
        Test::Prefill => drop(session.prefill(prompt, cancel)?),
        Test::FirstToken => drop(choose(session.prefill(prompt, cancel)?, prompt)),
        Test::Decode => {
            let mut history = vec![prompt[0]];
            for _ in 0..prompt.len() {
                Error::check_cancelled(cancel)?;
                let id = choose(session.decode(history[history.len() - 1])?, &history);
                history.push(id);
            }
        }
        Test::Batch(texts) => {
            let (batch, first) = session.parts();
            let mut ids = vec![prompt[0]; texts];
            for _ in 0..prompt.len() {
                Error::check_cancelled(cancel)?;
                let texts = [&mut *first].into_iter().chain(&mut *further_texts);
                let read = |(text, id)| PassInput {
                    text,
                    ids: std::slice::from_ref(id),
                    phase: Phase::Decode,
                    logits: Wanted::Last,
                    cancel: Some(cancel),
                };
                let mut pass = batch.run(texts.zip(&ids).map(read))?;
                let mut next = Vec::with_capacity(ids.len());
                for i in 0..ids.len() {
                    next.push(choose(pass.logits(i)?, &[]));
                    pass.commit(i, 1);
                }
                drop(pass);
                ids = next;
            }
        }
        Test::Verify => {
            for _ in 0..VERIFICATIONS {
                Error::check_cancelled(cancel)?;
                let mut pass = session.verify(prompt, Some(cancel))?;
                pass.logits(0)?;
                pass.commit(0, prompt.len());
            }
        }
    }
    Ok((start.elapsed(), sampling))
}
