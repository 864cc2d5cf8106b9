//! The scheduler: each text is bit-identical to a run of its own, whatever other texts start, end, fail or are cancelled.

#[path = "common/runner.rs"]
mod runner;
#[path = "common/texts.rs"]
mod texts;

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use hymba::{
    Constraint, Generation, Request, Sampler, SamplingParams, Shape, StopReason, Timeline, TokenModel, Tokenizer,
    Vocabulary,
    engine::{
        Model, Session, SessionOptions,
        scheduler::{Cached, Delivery, Event, Events, Job, Logprobs, Refused, Scheduler, SchedulerOptions, Usage},
        speculate::Speculate,
    },
    format::{Blob, CacheType, DType, gguf::Gguf},
    generate,
    state::Recurrent,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use runner::unless_emulated;
use texts::{CONTEXT, NO_CANCEL, model, one_of, rng, small_config};

/// Returns the demo's tokenizer; the vocabulary of the small models is a prefix of its own.
fn tokenizer() -> Arc<Tokenizer> {
    let demo = Model::open(format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    Arc::new(demo.tokenizer().unwrap())
}

/// The parameters of a job, from which several jobs can be created.
#[derive(Clone, Debug)]
struct Spec {
    prompt: Vec<u32>,
    limit: Option<usize>,
    stops: Vec<String>,
    sampling: SamplingParams,
    seed: u64,
    /// Number of tokens after which the reader cancels it.
    cancel_after: Option<usize>,
    /// Capacity of the reader's channel, in events.
    room: usize,
}

impl Spec {
    fn random(rng: &mut ChaCha8Rng, vocab: usize) -> Self {
        let length = rng.random_range(1..80);
        let sampling = SamplingParams {
            temperature: one_of(rng, &[0.0, 1.0, 5.0]),
            repeat_penalty: one_of(rng, &[1.0, 1.5]),
            ..SamplingParams::default()
        };
        Self {
            prompt: (0..length).map(|_| rng.random_range(0..vocab as u32)).collect(),
            limit: rng.random_bool(0.8).then(|| rng.random_range(0..40)),
            stops: if rng.random_bool(0.3) { vec!["#".into(), "\u{1}\u{2}".into()] } else { Vec::new() },
            sampling,
            seed: rng.random(),
            cancel_after: rng.random_bool(0.2).then(|| rng.random_range(0..10)),
            room: one_of(rng, &[1, 2, 1000]),
        }
    }

    /// Returns the text of a session of its own, in which the `decoded` tokens of the prompt are decoded, not prefilled.
    fn alone(&self, model: &Model, tokenizer: &Tokenizer, options: &SessionOptions, cached: &Cached) -> Generation {
        let mut session = Replay { session: Session::new(model, options).unwrap(), decoded: cached.decoded.clone() };
        let mut sampler = Sampler::new(self.sampling.clone(), self.seed);
        let request = Request { prompt: &self.prompt, limit: self.limit, stops: &self.stops, ..Request::default() };
        generate(&mut session, tokenizer, &mut sampler, &request, &mut |_| Ok(())).unwrap()
    }

    fn job(&self) -> (Job, Receiver<Event>, Arc<AtomicBool>) {
        let (send, receive) = sync_channel(self.room);
        let job = Job {
            limit: self.limit,
            stops: self.stops.clone(),
            sampling: self.sampling.clone(),
            seed: self.seed,
            ..Job::new(self.prompt.clone(), Box::new(send))
        };
        let cancel = job.cancel.clone();
        (job, receive, cancel)
    }

    fn submit(&self, scheduler: &Scheduler) -> Answer {
        let (job, events, cancel) = self.job();
        scheduler.submit(job).unwrap();
        answer(events, &cancel, self.cancel_after)
    }
}

/// A session that decodes some tokens of a prompt instead of prefilling them.
struct Replay<'m> {
    session: Session<'m>,
    decoded: Vec<Range<usize>>,
}

impl TokenModel for Replay<'_> {
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> hymba::Result<&[f32]> {
        let (mut done, mut logits) = (0, Vec::new());
        for decoded in self.decoded.iter().chain([&(ids.len()..ids.len())]) {
            if done < decoded.start {
                logits = self.session.prefill(&ids[done..decoded.start], cancel)?.to_vec();
            }
            for &id in &ids[decoded.clone()] {
                logits = self.session.decode(id)?.to_vec();
            }
            done = decoded.end;
        }
        Ok(logits.leak())
    }
    fn decode(&mut self, id: u32) -> hymba::Result<&[f32]> {
        self.session.decode(id)
    }
    fn tokens(&self) -> usize {
        self.session.tokens()
    }
    fn context(&self) -> usize {
        self.session.context()
    }
}

/// The events of a job, collected.
#[derive(Debug, Default)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<Logprobs>,
    prompt: Vec<Option<Logprobs>>,
    cached: Cached,
    end: Option<std::result::Result<(StopReason, Usage), String>>,
}

/// Collects all events of a job, and cancels it after `cancel_after` tokens.
fn answer(events: Receiver<Event>, cancel: &AtomicBool, cancel_after: Option<usize>) -> Answer {
    let mut answer = Answer::default();
    for event in events {
        assert!(answer.end.is_none(), "the end is the last event");
        match event {
            Event::Started(cached) => answer.cached = cached,
            Event::Prompt(logprobs) => answer.prompt.extend(logprobs),
            Event::Token { id, text, logprobs } => {
                answer.ids.push(id);
                answer.text += &text;
                answer.logprobs.extend(logprobs);
            }
            Event::Done { text, stop, usage } => {
                answer.text += &text;
                answer.end = Some(Ok((stop, usage)));
            }
            Event::Failed(e) => answer.end = Some(Err(e.to_string())),
        }
        if cancel_after.is_some_and(|tokens| answer.ids.len() >= tokens) {
            cancel.store(true, Ordering::Relaxed);
        }
    }
    answer
}

fn options(rng: &mut ChaCha8Rng, slots: usize) -> SchedulerOptions {
    let session = SessionOptions {
        context: Some(CONTEXT),
        cache: one_of(rng, &CacheType::ALL),
        chunk: one_of(rng, &[1, 7, 30, 240]),
        threads: one_of(rng, &[1, 2]).try_into().ok(),
        ..SessionOptions::default()
    };
    let speculate = one_of(rng, &[Speculate::Auto, Speculate::Off, Speculate::Fixed(3), Speculate::Fixed(7)]);
    SchedulerOptions { session, slots, speculate, cache_memory: Some(0), ..SchedulerOptions::default() }
}

/// Compares an answer with the same text alone, with the prompt tokens in the same phases.
fn check(spec: &Spec, answer: &Answer, model: &Model, tokenizer: &Tokenizer, options: &SchedulerOptions) {
    let want = spec.alone(model, tokenizer, &options.session, &answer.cached);
    let what = format!("{spec:?}, {:?}, {options:?}, {:?}", answer.cached, model.config());
    let (stop, usage) = answer.end.as_ref().unwrap().as_ref().unwrap();
    if *stop == StopReason::Interrupted {
        assert!(spec.cancel_after.is_some(), "{what}");
        assert!(want.ids.starts_with(&answer.ids) && want.text.starts_with(&answer.text), "{what}");
    } else {
        assert_eq!((&answer.ids, &answer.text, *stop), (&want.ids, &want.text, want.stop), "{what}");
        assert_eq!((usage.prompt_tokens, usage.generated_tokens), (spec.prompt.len(), want.ids.len()), "{what}");
    }
}

/// Submits jobs, each after its delay in ms, and returns their answers.
fn answers(scheduler: &Scheduler, specs: &[(Spec, u64)]) -> Vec<Answer> {
    thread::scope(|scope| {
        let submit = |(spec, wait): &(Spec, u64)| {
            thread::sleep(Duration::from_millis(*wait));
            spec.submit(scheduler)
        };
        let threads: Vec<_> = specs.iter().map(|one| scope.spawn(move || submit(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Random jobs at random times, with fewer or more slots than jobs.
#[test]
fn a_text_does_not_depend_on_concurrent_texts() {
    let tokenizer = tokenizer();
    for seed in 0..unless_emulated(6, 1) {
        let rng = &mut rng(seed);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = Arc::new(model(&config, one_of(rng, &DType::ALL), folder.path()));
        let slots = one_of(rng, &[1, 2, 3, 8]);
        let options = options(rng, slots);
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options).unwrap();
        let specs: Vec<(Spec, u64)> =
            (0..unless_emulated(24, 4)).map(|_| (Spec::random(rng, config.vocab), rng.random_range(0..20))).collect();
        for ((spec, _), answer) in specs.iter().zip(answers(&scheduler, &specs)) {
            assert_eq!(answer.cached, Cached::default());
            check(spec, &answer, &model, &tokenizer, &options);
        }
        let metrics = scheduler.metrics();
        assert_eq!((metrics.done + metrics.cancelled, metrics.failed), (specs.len() as u64, 0));
        scheduler.drain();
        assert!(scheduler.join());
    }
}

/// Forwards events, the first of them once the gate opens: the model thread waits until then.
struct Gated {
    gate: Option<Arc<Barrier>>,
    events: Box<dyn Events>,
}

impl Events for Gated {
    fn deliver(&mut self, event: Event) -> Delivery {
        if let Some(gate) = self.gate.take() {
            gate.wait();
        }
        self.events.deliver(event)
    }
}

/// Concurrent texts of few different tokens, with as many draft tokens as fit into a pass, accepted and rejected ones of
/// each text.
#[test]
fn drafts_of_several_texts_share_passes() {
    for (seed, slots) in [(200, 8), (201, 12)].into_iter().take(unless_emulated(2, 1)) {
        let rng = &mut rng(seed);
        let specs: Vec<Spec> = (0..slots + 5)
            .map(|_| {
                let Spec { mut prompt, stops, .. } = Spec::random(rng, 64);
                prompt.truncate(20);
                let temperature = one_of(rng, &[0.0, 1.0, 5.0]);
                let sampling = SamplingParams { temperature, ..SamplingParams::default() };
                let cancel_after = rng.random_bool(0.1).then_some(15);
                Spec { stops, sampling, seed: rng.random(), cancel_after, ..spec(prompt, rng.random_range(40..80)) }
            })
            .collect();
        let job = |i: usize| {
            let (job, events, cancel) = specs[i].job();
            let bias = [11, 13, 14 + i as u32 % 2].map(|id| (id, 50.0)).into();
            (Job { bias, ..job }, events, cancel)
        };
        let session = SessionOptions { cache: one_of(rng, &CacheType::ALL), ..defaults().session };
        let together = SchedulerOptions { slots, speculate: Speculate::Fixed(7), session, ..defaults() };
        let alone = SchedulerOptions { slots: 1, speculate: Speculate::Off, ..together.clone() };
        let [together, alone] = [together, alone].map(|options| {
            let folder = tempfile::tempdir().unwrap();
            let (_, scheduler) = small(seed, &SchedulerOptions { cache_memory: Some(0), ..options }, folder.path());
            let gate = Arc::new(Barrier::new(2));
            let submit = |i: usize| {
                let (mut job, events, cancel) = job(i);
                let gate = (i == 0).then(|| gate.clone());
                job.events = Box::new(Gated { gate, events: job.events });
                scheduler.submit(job).unwrap();
                (events, cancel)
            };
            let submitted: Vec<_> = (0..specs.len()).map(submit).collect();
            gate.wait();
            let answers = submitted.into_iter().zip(&specs);
            let answers: Vec<_> =
                answers.map(|((events, cancel), spec)| answer(events, &cancel, spec.cancel_after)).collect();
            (answers, scheduler.metrics())
        });
        for ((spec, got), want) in specs.iter().zip(together.0).zip(alone.0) {
            if spec.cancel_after.is_none() {
                let stop = |answer: &Answer| answer.end.as_ref().unwrap().as_ref().unwrap().0;
                assert_eq!((&got.ids, &got.text, stop(&got)), (&want.ids, &want.text, stop(&want)), "{spec:?}");
            }
            let common = got.ids.iter().zip(&want.ids).take_while(|(a, b)| a == b).count();
            assert_eq!(common, got.ids.len().min(want.ids.len()), "{spec:?}");
        }
        let metrics = together.1;
        let rows = (metrics.rows - metrics.prompt_tokens) as f64 / metrics.passes as f64;
        println!("{slots} at once, {rows:.1} rows a pass, {} of {} accepted", metrics.accepted, metrics.drafted);
        assert!(metrics.accepted > 100 && metrics.accepted < metrics.drafted, "{metrics:?}");
        assert!(rows > slots as f64, "drafts are verified beside other texts: {metrics:?}");
        assert!(metrics.passes < alone.1.passes);
    }
}

/// Jobs that continue, change or repeat the texts of others, concurrently or later.
#[test]
fn an_answer_is_determined_by_its_cached_prefix() {
    let tokenizer = tokenizer();
    let (mut hits, mut decoded) = (0, 0);
    for seed in 0..unless_emulated(8, 1) {
        let rng = &mut rng(100 + seed);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = Arc::new(model(&config, one_of(rng, &DType::ALL), folder.path()));
        let slots = one_of(rng, &[1, 2, 4]);
        let few = Recurrent::bytes(&config) * rng.random_range(3..12);
        let options = SchedulerOptions {
            cache_memory: Some(if rng.random_bool(0.5) { few } else { 1 << 30 }),
            ..options(rng, slots)
        };
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options).unwrap();
        let mut texts: Vec<Vec<u32>> = vec![Vec::new()];
        for _ in 0..unless_emulated(6, 2) {
            let specs: Vec<(Spec, u64)> = (0..5)
                .map(|_| {
                    let spec = Spec::random(rng, config.vocab);
                    let known = &texts[rng.random_range(0..texts.len())];
                    let keep = if rng.random_bool(0.5) { known.len() } else { rng.random_range(0..=known.len()) };
                    let more =
                        if keep > 0 && rng.random_bool(0.3) { 0 } else { rng.random_range(1..=spec.prompt.len()) };
                    let mut prompt = [&known[..keep], &spec.prompt[..more]].concat();
                    prompt.truncate(CONTEXT - 10);
                    (Spec { prompt, ..spec }, rng.random_range(0..20))
                })
                .collect();
            for ((spec, _), answer) in specs.iter().zip(answers(&scheduler, &specs)) {
                check(spec, &answer, &model, &tokenizer, &options);
                hits += usize::from(answer.cached.tokens > 0);
                decoded += answer.cached.decoded.len();
                texts.push([&spec.prompt[..], &answer.ids].concat());
            }
            let metrics = scheduler.metrics();
            assert!(metrics.prefix_bytes <= metrics.prefix_limit);
        }
        let metrics = scheduler.metrics();
        assert!(metrics.prefixes > 0 && metrics.prefix_bytes > 0);
    }
    assert!(hits > 10 && decoded > 5, "{hits} hits, {decoded} parts of answers among them");
}

/// A small model and a scheduler of it.
fn small(seed: u64, options: &SchedulerOptions, folder: &Path) -> (Arc<Model>, Scheduler) {
    let rng = &mut rng(seed);
    let model = Arc::new(model(&small_config(rng), DType::F32, folder));
    let scheduler = Scheduler::start(model.clone(), tokenizer(), options).unwrap();
    (model, scheduler)
}

fn defaults() -> SchedulerOptions {
    let session = SessionOptions { context: Some(CONTEXT), ..SessionOptions::default() };
    SchedulerOptions { session, ..SchedulerOptions::default() }
}

fn spec(prompt: Vec<u32>, limit: usize) -> Spec {
    let (stops, sampling, seed) = (Vec::new(), SamplingParams::default(), 0);
    Spec { prompt, limit: Some(limit), stops, sampling, seed, cancel_after: None, room: 1000 }
}

/// Returns ids without end tokens.
fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|i| 3 + i * 7 % 60).collect()
}

#[test]
fn identical_prompts_are_prefilled_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scheduler) = small(1, &defaults(), folder.path());
    let specs: Vec<(Spec, u64)> = (0..6).map(|seed| (Spec { seed, ..spec(ids(100), 20) }, 0)).collect();
    let answers = answers(&scheduler, &specs);
    let metrics = scheduler.metrics();
    assert_eq!((metrics.prompt_tokens, metrics.cached_tokens), (100, 500));
    assert!(answers.iter().any(|answer| answer.ids != answers[0].ids), "each has its own seed");
    // prompts with a common prefix share only that
    let with_suffix = |more: &[u32]| (spec([&ids(60)[..], more].concat(), 5), 0);
    let answers = self::answers(&scheduler, &[with_suffix(&[1, 9]), with_suffix(&[9, 8, 7])]);
    let cached: Vec<usize> = answers.iter().map(|answer| answer.cached.tokens).collect();
    assert!(cached == [0, 60] || cached == [60, 0], "{cached:?}");
}

#[test]
fn prefixes_are_not_shared_between_owners() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scheduler) = small(2, &defaults(), folder.path());
    let cached = |owner: &str| {
        let (job, events, cancel) = spec(ids(50), 3).job();
        scheduler.submit(Job { owner: owner.into(), ..job }).unwrap();
        answer(events, &cancel, None).cached.tokens
    };
    assert_eq!([cached("a"), cached("b"), cached("a"), cached("b"), cached("")], [0, 0, 50, 50, 0]);
    let jobs: Vec<_> = ["c", "d", "d"]
        .map(|owner| {
            let (job, events, cancel) = spec(ids(100), 3).job();
            scheduler.submit(Job { owner: owner.into(), ..job }).unwrap();
            (events, cancel)
        })
        .into_iter()
        .map(|(events, cancel)| answer(events, &cancel, None).cached.tokens)
        .collect();
    assert_eq!(jobs, [0, 0, 100], "and no owner waits for another");
}

#[test]
fn log_probabilities_match_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, scheduler) = small(3, &defaults(), folder.path());
    let prompt = ids(40);
    for prompt_logprobs in [false, true, true] {
        let (job, events, cancel) = spec(prompt.clone(), 4).job();
        let job = Job { logprobs: Some(3), prompt_logprobs, bias: vec![(11, 1e9)], ..job };
        scheduler.submit(job).unwrap();
        let answer = answer(events, &cancel, None);
        assert_eq!(answer.ids, [11; 4], "the bias forces token 11");
        let mut session = Session::new(&model, &defaults().session).unwrap();
        let mut all: Vec<Vec<f32>> = Vec::new();
        let ids = [&prompt[..], &[11; 3]].concat();
        session
            .prefill_all(&prompt, &NO_CANCEL, |_, logits| {
                all.push(logits.to_vec());
                Ok(())
            })
            .unwrap();
        (0..3).for_each(|_| all.push(session.decode(11).unwrap().to_vec()));
        let want = |position: usize, id: u32| {
            let logits = &all[position - 1];
            let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
            (f64::from(logits[id as usize]) - sum.ln()) as f32
        };
        let check = |got: &Logprobs, position: usize, id: u32| {
            assert!((got.logprob - want(position, id)).abs() < 1e-4, "token {position}");
            assert!(got.top.len() == 3 && got.top.iter().all(|&(id, p)| (p - want(position, id)).abs() < 1e-4));
            let best = all[position - 1].iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(all[position - 1][got.top[0].0 as usize], best);
        };
        assert_eq!(answer.logprobs.len(), 4);
        answer.logprobs.iter().enumerate().for_each(|(i, got)| check(got, 40 + i, 11));
        assert_eq!(answer.prompt.len(), if prompt_logprobs { 40 } else { 0 });
        for (i, got) in answer.prompt.iter().enumerate() {
            match got {
                Some(got) => check(got, i, ids[i]),
                None => assert_eq!(i, 0),
            }
        }
    }
}

#[test]
fn invalid_jobs_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (model, scheduler) = small(4, &defaults(), folder.path());
    let long = [(spec(ids(60), 100), 0), (spec(ids(50), 100), 0)];
    let valid: Vec<Answer> = thread::scope(|scope| {
        let valid = scope.spawn(|| answers(&scheduler, &long));
        let failure = |spec: Spec| spec.submit(&scheduler).end.unwrap().unwrap_err();
        assert!(failure(spec(vec![], 1)).starts_with("the prompt is empty"));
        assert!(failure(spec(vec![1, 64], 1)).starts_with("token id 64 is out of range"));
        assert!(failure(spec(ids(201), 1)).starts_with("201 more tokens do not fit"));
        let stops = vec!["a".into(); 100];
        assert!(failure(Spec { stops, ..spec(ids(2), 1) }).starts_with("100 stop strings are too many"));
        valid.join().unwrap()
    });
    for ((spec, _), answer) in long.iter().zip(valid) {
        check(spec, &answer, &model, &tokenizer(), &defaults());
    }
    let full = spec(ids(200), 9).submit(&scheduler);
    assert_eq!((full.ids.len(), full.end.unwrap().unwrap().0), (1, StopReason::ContextFull));
    assert_eq!(scheduler.metrics().failed, 4);
}

/// A model that computes NaN from token 40, and values beyond the range of F16 from token 41.
fn fragile(vocab: usize, folder: &Path) -> Arc<Model> {
    let config = hymba::model::Config { vocab, meta_tokens: 0, ..small_config(&mut rng(5)) };
    drop(model(&config, DType::F32, folder));
    let mut gguf = Gguf::open(&folder.join("random.gguf")).unwrap();
    let (k, v) = config.kv_widths();
    let mut change = |name: &str, change: &dyn Fn(usize, usize, f32) -> f32| {
        let tensor = gguf.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(tensor.dtype, DType::F32);
        let mut bytes = tensor.data.to_vec();
        for (i, value) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (row, col) = (i / config.hidden, i % config.hidden);
            *value = change(row, col, f32::from_le_bytes(*value)).to_le_bytes();
        }
        tensor.data = Blob::from_vec(bytes);
    };
    // In the embeddings, only token 40 is nonzero in column 1, and only token 41 in column 0.
    change("token_embd.weight", &|row, col, value| match (row, col) {
        (40, 1) | (41, 0) => 8.0,
        (_, 0 | 1) => 0.0,
        _ => value,
    });
    let values = config.hidden + k..config.hidden + k + v;
    let u = values.end..values.end + config.inner;
    change("blk.0.in_proj.weight", &|row, col, value| match col {
        0 if values.contains(&row) => 1e8,
        1 if u.contains(&row) => 3e38,
        _ => value,
    });
    Arc::new(Model::from_gguf(gguf).unwrap())
}

#[test]
fn non_finite_values_fail_only_their_text() {
    let folder = tempfile::tempdir().unwrap();
    let model = fragile(64, folder.path());
    let options = SchedulerOptions { slots: 8, ..defaults() };
    let scheduler = Scheduler::start(model.clone(), tokenizer(), &options).unwrap();
    let harmless = |i: usize| ids(30 + i as u32).into_iter().map(|id| id % 40).collect::<Vec<_>>();
    let bias = || vec![(40, -1e9), (41, -1e9)];
    let jobs: Vec<_> = (0..8)
        .map(|i| {
            let mut prompt = harmless(i);
            match i {
                2 => prompt[20] = 40,
                4 => prompt[20] = 41,
                _ => {}
            }
            let (mut job, events, cancel) = spec(prompt.clone(), 20).job();
            // text 6 generates token 41 itself
            job.bias = if i == 6 { vec![(41, 1e9)] } else { bias() };
            scheduler.submit(job).unwrap();
            (i, prompt, events, cancel)
        })
        .collect();
    for (i, prompt, events, cancel) in jobs {
        let got = answer(events, &cancel, None);
        if i == 2 {
            let error = got.end.unwrap().unwrap_err();
            assert!(error.contains("not finite"), "{error}");
            continue;
        }
        let stop = got.end.as_ref().unwrap().as_ref().map(|end| end.0);
        assert!(matches!(stop, Ok(StopReason::Limit | StopReason::EndOfText)), "{i}: {got:?}");
        // The same with a timeline, which falls back to an F32 cache.
        let mut timeline = Timeline::new(Session::new(&model, &options.session).unwrap(), 0);
        let mut logits = timeline.prefill(&prompt, &NO_CANCEL).unwrap().to_vec();
        let mut sampler = Sampler::new(SamplingParams::default(), 0);
        let mut history = prompt.clone();
        for (j, &id) in got.ids.iter().enumerate() {
            let bias = if i == 6 { vec![(41, 1e9)] } else { bias() };
            bias.iter().for_each(|&(id, bias): &(u32, f32)| logits[id as usize] += bias);
            assert_eq!(sampler.sample(&logits, &history), id, "text {i}, token {j}");
            history.push(id);
            logits = timeline.decode(id).unwrap().to_vec();
        }
        let wide = timeline.session().cache_type() == CacheType::F32;
        assert_eq!(wide, i == 4 || i == 6, "text {i}");
    }
    assert_eq!((scheduler.metrics().done, scheduler.metrics().failed), (7, 1));
    // the slots have their original cache type again
    let again = spec(harmless(3), 5).submit(&scheduler);
    assert_eq!(again.cached.tokens, harmless(3).len());
}

#[test]
fn a_full_queue_refuses_jobs_and_stop_ends_them() {
    let folder = tempfile::tempdir().unwrap();
    let options = SchedulerOptions { slots: 2, queue: 3, ..defaults() };
    let (_, scheduler) = small(6, &options, folder.path());
    // Texts whose readers receive nothing wait and occupy their slots.
    let stuck: Vec<_> = (0..5).map(|_| Spec { room: 1, ..spec(ids(9), 50) }.job()).collect();
    let mut readers = Vec::new();
    for (job, events, _) in stuck {
        scheduler.submit(job).unwrap();
        readers.push(events);
    }
    let refused = scheduler.submit(spec(ids(9), 1).job().0);
    assert!(matches!(refused, Err(Refused::Full(_))), "{refused:?}");
    assert_eq!((scheduler.metrics().queued + scheduler.metrics().running, scheduler.metrics().refused), (5, 1));
    // If readers disconnect, waiting texts get their slots.
    let last = readers.pop().unwrap();
    drop(readers);
    let got = answer(last, &AtomicBool::new(false), None);
    assert!(got.end.is_some_and(|end| end.is_ok()), "the remaining reader gets its whole text");
    // `drain` finishes running texts, `stop` does not.
    let (job, events, cancel) = Spec { room: 1, limit: None, ..spec(ids(9), 0) }.job();
    scheduler.submit(job).unwrap();
    scheduler.drain();
    assert!(matches!(scheduler.submit(spec(ids(9), 1).job().0), Err(Refused::Stopping)));
    assert!(!scheduler.is_ended());
    scheduler.stop();
    let got = answer(events, &cancel, None);
    assert!(got.end.is_none_or(|end| end.unwrap().0 == StopReason::Interrupted));
    assert!(scheduler.join());
}

#[test]
fn a_long_prefill_can_be_cancelled() {
    let demo = Model::open(format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (model, tokenizer) = (Arc::new(demo), tokenizer());
    let session = SessionOptions { context: Some(20_000), ..SessionOptions::default() };
    let scheduler = Scheduler::start(model, tokenizer, &SchedulerOptions { session, ..defaults() }).unwrap();
    let (job, events, cancel) = spec(vec![5; 20_000], 1).job();
    scheduler.submit(job).unwrap();
    assert!(matches!(events.recv().unwrap(), Event::Started(_)));
    thread::sleep(Duration::from_millis(300));
    cancel.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let ended = events.recv().unwrap();
    let took = start.elapsed();
    assert!(matches!(ended, Event::Done { stop: StopReason::Interrupted, .. }), "{ended:?}");
    assert!(took < Duration::from_secs(unless_emulated(2, 60)), "{took:?}");
}

#[test]
fn prefix_states_survive_a_restart() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let states = cache.path().join("states");
    let options = SchedulerOptions { cache_folder: Some(states.clone()), ..defaults() };
    let (model, scheduler) = small(7, &options, folder.path());
    let first = spec(ids(50), 30);
    let answer = first.submit(&scheduler);
    let longer = spec([&first.prompt[..], &answer.ids, &[9, 8, 7]].concat(), 10);
    let owned = |scheduler: &Scheduler, owner: &str| {
        let (job, events, cancel) = longer.job();
        scheduler.submit(Job { owner: owner.into(), ..job }).unwrap();
        self::answer(events, &cancel, None)
    };
    let branch = spec([&first.prompt[..30], &[50; 20]].concat(), 4); // splits a node
    branch.submit(&scheduler);
    let want = owned(&scheduler, "");
    assert!(want.cached.tokens >= 79, "{:?}", want.cached);
    scheduler.drain();
    assert!(scheduler.join());
    let files = || {
        let paths = fs::read_dir(&states).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = paths.filter(|path| path.extension().is_some()).collect(); // without the lock
        files.sort_unstable();
        files
    };
    assert!(files().len() >= 5, "{:?}", files());
    #[cfg(unix)]
    for file in &files() {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let restart = || Scheduler::start(model.clone(), tokenizer(), &options).unwrap();
    let scheduler = restart();
    let second = Scheduler::start(model.clone(), tokenizer(), &options).err().unwrap().to_string();
    assert!(second.contains("another process uses it"), "{second}");
    assert_eq!(owned(&scheduler, "another").cached.tokens, 0);
    let got = owned(&scheduler, "");
    assert_eq!((got.cached.tokens, &got.ids), (longer.prompt.len(), &want.ids));
    let answer = branch.submit(&scheduler);
    assert_eq!(answer.cached.tokens, branch.prompt.len());
    for (spec, answer) in [(&longer, &got), (&branch, &answer)] {
        check(spec, answer, &model, &tokenizer(), &options);
    }
    drop(scheduler);
    // States of another model are neither used nor removed.
    let before = files();
    let other = tempfile::tempdir().unwrap();
    let (_, scheduler) = small(8, &options, other.path());
    assert_eq!(scheduler.metrics().prefixes, 0);
    drop(scheduler);
    assert_eq!(files(), before);
    // Damaged states are removed, and the prompt is processed again.
    for path in files() {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let scheduler = restart();
    assert_eq!(files().len(), 0);
    let got = owned(&scheduler, "");
    assert_eq!(got.cached.tokens, 0);
    check(&longer, &got, &model, &tokenizer(), &options);
}

/// A draft may contain a token that the model fails at and the text does not: then the text continues without it.
#[test]
fn texts_continue_without_a_draft_that_fails_the_pass() {
    let (tokenizer, folder) = (Arc::new(texts::tokenizer()), tempfile::tempdir().unwrap());
    let model = fragile(texts::VOCAB, folder.path());
    let [nan, wide] = [tokenizer.decode(&[40]), tokenizer.decode(&[41])];
    assert_eq!([&*nan, &*wide], ["%", "&"]);
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let drafted = [Speculate::Fixed(7), Speculate::Off].map(|speculate| {
        let options = SchedulerOptions { slots: 3, speculate, ..defaults() };
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options).unwrap();
        // The whole text is forced, so that all of it is drafted.
        let submit = |regex: &str, stop: &str| {
            let (mut job, events, cancel) = Spec { stops: vec![stop.into()], ..spec(vec![1, 52, 53], 30) }.job();
            job.matching = Some(Constraint::new(&vocabulary, &Shape::Regex(regex.into())).unwrap().matching());
            scheduler.submit(job).unwrap();
            (events, cancel)
        };
        let all = [("1234%5678", "%"), ("1234&5678", "#"), ("123456789", "#")];
        let answers =
            all.map(|(regex, stop)| submit(regex, stop)).map(|(events, cancel)| answer(events, &cancel, None));
        let text = answers.each_ref().map(|got| (&*got.text, got.end.as_ref().unwrap().as_ref().unwrap().0));
        let end = StopReason::EndOfText;
        assert_eq!(text, [("1234", StopReason::StopString), ("1234&5678", end), ("123456789", end)]);
        scheduler.metrics().drafted
    });
    assert!(drafted[0] > 10 && drafted[1] == 0, "{drafted:?}");
}
