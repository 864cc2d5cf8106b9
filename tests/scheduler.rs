//! Texts in a scheduler: each is what it is alone, whatever comes, goes, fails or is cancelled beside it.

#[path = "common/runner.rs"]
mod runner;
#[path = "common/texts.rs"]
mod texts;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::Duration,
};

use hymba::{
    Generation, Request, Sampler, SamplingParams, StopReason, Tokenizer,
    engine::{
        Model, Session, SessionOptions,
        scheduler::{Event, Job, Logprobs, Scheduler, SchedulerOptions, Usage},
    },
    format::{CacheType, DType},
    generate,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use runner::much;
use texts::{CONTEXT, model, one_of, rng, small_config};

/// The demo's tokenizer, of which the small models have the first tokens.
fn tokenizer() -> Arc<Tokenizer> {
    let demo = Model::open(format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    Arc::new(demo.tokenizer().unwrap())
}

/// What a job asks for, to be asked for again.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    limit: Option<usize>,
    stops: Vec<String>,
    sampling: SamplingParams,
    seed: u64,
    /// After so many tokens its reader has had enough.
    cancel_after: Option<usize>,
    /// Events that its reader can hold.
    room: usize,
}

impl Ask {
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

    /// The text that comes of it alone.
    fn alone(&self, model: &Model, tokenizer: &Tokenizer, options: &SessionOptions) -> Generation {
        let mut session = Session::new(model, options).unwrap();
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

/// What came out for a job.
#[derive(Debug, Default)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<Logprobs>,
    prompt: Vec<Option<Logprobs>>,
    cached: hymba::engine::scheduler::Cached,
    end: Option<std::result::Result<(StopReason, Usage), String>>,
}

/// Takes all events of a job, whose reader has had enough after so many tokens.
fn answer(events: Receiver<Event>, cancel: &AtomicBool, cancel_after: Option<usize>) -> Answer {
    let mut answer = Answer::default();
    for event in events {
        assert!(answer.end.is_none(), "the end is the last event");
        match event {
            Event::Started(cached) => answer.cached = cached,
            Event::Prompt(all) => answer.prompt.extend(all),
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
    SchedulerOptions { session, slots, ..SchedulerOptions::default() }
}

/// Jobs of all kinds come when they like, to more or fewer slots than there are of them.
#[test]
fn a_text_is_the_same_in_any_company() {
    let tokenizer = tokenizer();
    for seed in 0..much(6, 1) {
        let rng = &mut rng(seed);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = Arc::new(model(&config, one_of(rng, &DType::ALL), folder.path()));
        let slots = one_of(rng, &[1, 2, 3, 8]);
        let options = options(rng, slots);
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options).unwrap();
        let asks: Vec<(Ask, u64)> =
            (0..much(24, 4)).map(|_| (Ask::random(rng, config.vocab), rng.random_range(0..20))).collect();
        let answers: Vec<Answer> = thread::scope(|scope| {
            let threads: Vec<_> = asks
                .iter()
                .map(|(ask, wait)| {
                    let scheduler = &scheduler;
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(*wait));
                        ask.submit(scheduler)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ((ask, _), answer) in asks.iter().zip(answers) {
            let want = ask.alone(&model, &tokenizer, &options.session);
            let what = format!("{ask:?}, {options:?}, {config:?}");
            let (stop, usage) = answer.end.unwrap().unwrap();
            if stop == StopReason::Interrupted {
                assert!(ask.cancel_after.is_some(), "{what}");
                assert!(want.ids.starts_with(&answer.ids) && want.text.starts_with(&answer.text), "{what}");
            } else {
                assert_eq!((answer.ids, answer.text, stop), (want.ids.clone(), want.text, want.stop), "{what}");
                assert_eq!((usage.prompt_tokens, usage.generated_tokens), (ask.prompt.len(), want.ids.len()), "{what}");
            }
        }
        let metrics = scheduler.metrics();
        assert_eq!((metrics.done + metrics.cancelled, metrics.failed), (asks.len() as u64, 0));
        scheduler.drain();
        assert!(scheduler.join());
    }
}
