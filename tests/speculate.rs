//! With speculative decoding, the text, its ids, logits, state and saved files are bit-identical to those of single steps,
//! whatever the drafts are and wherever the text ends.

#[path = "common/runner.rs"]
mod runner;
#[path = "common/texts.rs"]
mod texts;

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::Path,
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use hymba::{
    Error,
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline, TokenModel,
        conversation::{Options, Overflow, Reply, ReplySink},
        generate::{Generation, Request, StopReason, Timings, generate_with},
        speculate::{Class, DraftSource, Forced, Guess, Speculate, Speculator},
        timeline::Watch,
    },
    format::{CacheType, DType},
    sample::{Sampler, SamplingParams},
    text::{Template, Tokenizer, ToolChoice},
};
use rand::{RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use runner::unless_emulated;
use serde_json::Value;
use texts::{NO_CANCEL, VOCAB, model, one_of, rng, small_config, tokenizer};

const CHATML: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<a>{% endif %}";

/// A small model with random weights, for texts of all bytes.
fn random_model(rng: &mut ChaCha8Rng, folder: &Path) -> Model {
    let mut config = small_config(rng);
    config.vocab = VOCAB;
    model(&config, one_of(rng, &[DType::F32, DType::Q8_0, DType::Q4_0]), folder)
}

/// A draft source that knows the text and returns partly right guesses.
#[derive(Clone, Default)]
struct Oracle {
    /// The ids of the text with single steps.
    ids: Rc<RefCell<Vec<u32>>>,
    /// How many of 8 guesses are right.
    right: u32,
}

impl DraftSource for Oracle {
    fn guess(&self, text: &[u32], max: usize, guesses: &mut Vec<Guess>) {
        let ids = self.ids.borrow();
        let Some(next) = ids.get(text.len()..).filter(|_| ids.starts_with(text)) else { return };
        for (i, &id) in next.iter().take(max).enumerate() {
            let mixed = (text.len() + i).wrapping_mul(2_654_435_761) as u32 >> 13;
            let id = if mixed % 8 < self.right { id } else { mixed % VOCAB as u32 };
            guesses.push(Guess { id, class: Class::of_match(8, 1.0) });
        }
    }
}

/// What ends a text early, after this many pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    No,
    Cancel(usize),
    Closed(usize),
    Full(usize),
}

/// Runs `work` with a sink that ends the text that way; returns its result and the pieces.
fn with_end<T>(
    end: End,
    work: impl FnOnce(&AtomicBool, &mut dyn FnMut(&str) -> io::Result<()>) -> T,
) -> (T, Vec<String>) {
    let (cancel, mut pieces) = (AtomicBool::new(false), Vec::new());
    let done = work(&cancel, &mut |piece: &str| {
        match end {
            End::Closed(after) if pieces.len() == after => return Err(io::ErrorKind::BrokenPipe.into()),
            End::Full(after) if pieces.len() == after => return Err(io::ErrorKind::StorageFull.into()),
            End::Cancel(after) if pieces.len() == after => cancel.store(true, Ordering::Relaxed),
            _ => {}
        }
        pieces.push(piece.to_owned());
        Ok(())
    });
    (done, pieces)
}

/// Text, ids, the unprocessed id, stop reason, decode steps.
type Compared = (String, Vec<u32>, Option<u32>, StopReason, usize);

/// Returns everything in a result except the times.
fn comparable(done: hymba::Result<Generation>) -> Result<Compared, String> {
    let done = done.map_err(|e| e.to_string())?;
    Ok((done.text, done.ids, done.unprocessed, done.stop, done.timings.decode_steps))
}

fn params(rng: &mut ChaCha8Rng) -> SamplingParams {
    SamplingParams {
        temperature: one_of(rng, &[0.0, 0.0, 0.02, 0.3, 0.8]),
        top_k: one_of(rng, &[0, 3, 40]),
        top_p: one_of(rng, &[1.0, 0.9]),
        min_p: one_of(rng, &[0.0, 0.05]),
        repeat_penalty: one_of(rng, &[1.0, 1.0, 1.1, 1.5]),
        repeat_last_n: one_of(rng, &[4, 64]),
    }
}

fn speculate(rng: &mut ChaCha8Rng) -> Speculate {
    one_of(rng, &[Speculate::Fixed(1), Speculate::Fixed(3), Speculate::Fixed(7), Speculate::Fixed(7), Speculate::Auto])
}

fn end(rng: &mut ChaCha8Rng) -> End {
    let after = rng.random_range(0..12);
    one_of(rng, &[End::No, End::No, End::No, End::Cancel(after), End::Closed(after), End::Full(after)])
}

/// Stop strings that may occur in a random text.
fn stops(rng: &mut ChaCha8Rng) -> Vec<String> {
    let all = ["a", "b", "ab", " c", "é", "e", "the", "\n"];
    (0..one_of(rng, &[0, 0, 1, 2])).map(|_| (*all.choose(rng).unwrap()).to_owned()).collect()
}

/// Numbers of drafted and accepted tokens, to assert that a test has some of both.
#[derive(Default)]
struct Guessed {
    drafted: Cell<usize>,
    accepted: Cell<usize>,
}

impl Guessed {
    fn add(&self, timings: &Timings) {
        self.drafted.set(self.drafted.get() + timings.drafted);
        self.accepted.set(self.accepted.get() + timings.accepted);
    }

    #[track_caller]
    fn check(&self, min: usize) {
        let (drafted, accepted) = (self.drafted.get(), self.accepted.get());
        assert!(accepted >= min && drafted - accepted >= min, "{accepted} of {drafted} guesses were right");
    }
}

/// Compares consecutive texts of a session.
fn check_texts(model: &Model, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng, guessed: &Guessed, what: &str) {
    let options = SessionOptions {
        context: Some(rng.random_range(20..120)),
        threads: 1.try_into().ok(),
        cache: one_of(rng, &CacheType::ALL),
        ..SessionOptions::default()
    };
    let oracle = Oracle { right: rng.random_range(3..=8), ..Oracle::default() };
    let sampler = Sampler::new(params(rng), rng.random());
    let mut speculators = [Speculate::Off, speculate(rng)].map(Speculator::new);
    if rng.random_bool(0.6) {
        speculators[1].add_source(Box::new(oracle.clone()));
    }
    let mut samplers = [sampler.clone(), sampler];
    let mut sessions = [(); 2].map(|()| Session::new(model, &options).unwrap());
    let mut history: Vec<u32> = Vec::new();
    for text in 0..rng.random_range(1..4) {
        let prompt: Vec<u32> = (0..rng.random_range(1..12)).map(|_| rng.random_range(3..VOCAB as u32)).collect();
        if history.len() + prompt.len() > options.context.unwrap() {
            return;
        }
        let (limit, stops, end) = (one_of(rng, &[None, Some(0), Some(1), Some(9), Some(40)]), stops(rng), end(rng));
        let mut outcomes = Vec::new();
        for i in 0..2 {
            let (done, pieces) = with_end(end, |cancel, sink| {
                let cancel = Some(cancel);
                let request =
                    Request { history: &history, prompt: &prompt, limit, stops: &stops, cancel, ..Request::default() };
                generate_with(&mut sessions[i], tokenizer, &mut samplers[i], &request, &mut speculators[i], sink)
            });
            if let Ok(done) = &done {
                guessed.add(&done.timings);
                *oracle.ids.borrow_mut() = [&*history, &prompt, &done.ids].concat();
            }
            let read = sessions[i].tokens();
            // The logits of the next token show whether the state is the same.
            let state = sessions[i].checkpoint(true).unwrap();
            let room = read < sessions[i].context();
            let next: Option<Vec<u32>> =
                room.then(|| sessions[i].decode(7).unwrap().iter().map(|logit| logit.to_bits()).collect());
            sessions[i].restore(&state);
            outcomes.push((comparable(done), pieces, read, next, samplers[i].saved()));
        }
        let with = outcomes.pop().unwrap();
        assert!(
            with == outcomes[0],
            "{what}, text {text}, {limit:?}, {stops:?}, {end:?}:\n{with:?}\n{:?}",
            outcomes[0]
        );
        let Ok((_, ids, ..)) = with.0 else { return };
        history.extend(prompt.iter().chain(&ids).take(with.2 - history.len()));
        assert_eq!(history.len(), with.2);
    }
}

/// A user action in a conversation.
#[derive(Clone, Debug)]
enum Action {
    Send(String, End),
    Regenerate(End),
    Undo,
    Branch(String),
    Switch(String),
    Save,
    Load,
    Clear,
    Params(SamplingParams),
    Limit(Option<usize>),
}

fn random_action(rng: &mut ChaCha8Rng, number: usize) -> Action {
    let words = ["a b c d", "abc abc abc", "the end", "é", "a b c d e f g h", "x"];
    let name = one_of(rng, &["main", "one", "two"]).to_owned();
    match rng.random_range(0..16) {
        _ if number == 0 => Action::Send(words[0].into(), End::No),
        0..=5 => Action::Send((*words.choose(rng).unwrap()).into(), end(rng)),
        6 | 7 => Action::Regenerate(end(rng)),
        8 => Action::Undo,
        9 => Action::Branch(name),
        10 => Action::Switch(name),
        11 => Action::Save,
        12 => Action::Load,
        13 => Action::Params(params(rng)),
        14 => Action::Limit(one_of(rng, &[None, Some(1), Some(6), Some(25)])),
        _ if rng.random_bool(0.2) => Action::Clear,
        _ => Action::Undo,
    }
}

/// Result of an action, or its error message.
type Outcome = Result<Option<(Result<(String, Vec<u32>, Option<u32>, StopReason, usize), String>, usize)>, String>;

fn perform(c: &mut Conversation<'_>, action: &Action, file: &Path, guessed: &Guessed) -> (Outcome, Vec<String>) {
    let watch = Watch { cancel: &NO_CANCEL, progress: &|_, _| () };
    let reply = |end: End, send: &mut dyn FnMut(&mut ReplySink<'_>) -> hymba::Result<Reply>| {
        with_end(end, |cancel, text| {
            let watch = Watch { cancel, progress: &|_, _| () };
            let reply = send(&mut ReplySink { watch, text }).map_err(|e| e.to_string())?;
            guessed.add(&reply.generation.timings);
            Ok(Some((comparable(Ok(reply.generation)), reply.dropped)))
        })
    };
    let done = |done: hymba::Result<()>| (done.map(|()| None).map_err(|e| e.to_string()), Vec::new());
    match action {
        Action::Send(text, end) => reply(*end, &mut |sink| c.send(text, sink)),
        Action::Regenerate(end) => reply(*end, &mut |sink| c.regenerate(sink)),
        Action::Undo => done(c.undo(1, &watch).map(drop)),
        Action::Branch(name) => done(c.branch(name)),
        Action::Switch(name) => done(c.switch(name, &watch)),
        Action::Save => done(c.save(file, &watch)),
        Action::Load if file.exists() => done(c.load(file, false)),
        Action::Load => done(Ok(())),
        Action::Clear => done(c.clear()),
        Action::Params(params) => {
            c.sampler().set_params(params.clone());
            done(Ok(()))
        }
        Action::Limit(limit) => {
            c.set_limit(*limit);
            done(Ok(()))
        }
    }
}

/// Compares two conversations after the same actions.
fn check_conversation(model: &Model, tokenizer: &Tokenizer, rng: &mut ChaCha8Rng, guessed: &Guessed, what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let files = ["single", "several"].map(|name| folder.path().join(name));
    let options = SessionOptions {
        context: Some(rng.random_range(60..200)),
        threads: 1.try_into().ok(),
        cache: one_of(rng, &CacheType::ALL),
        ..SessionOptions::default()
    };
    let oracle = Oracle { right: rng.random_range(3..=8), ..Oracle::default() };
    let mut speculators = [Speculate::Off, speculate(rng)].map(Speculator::new);
    if rng.random_bool(0.5) {
        speculators[1].add_source(Box::new(oracle.clone()));
    }
    let sampler = Sampler::new(params(rng), rng.random());
    let (template, stops) = (rng.random_bool(0.7), stops(rng));
    let (overflow, limit) = (one_of(rng, &[Overflow::Stop, Overflow::Slide]), one_of(rng, &[Some(12), Some(30), None]));
    let budget = one_of(rng, &[0, 1 << 16, 64 << 20]);
    let mut conversations = speculators.map(|speculator| {
        let timeline = Timeline::new(Session::new(model, &options).unwrap(), budget);
        let options = Options {
            template: template.then(|| Template::new(CHATML, "test", "<s>", "</s>").unwrap()),
            system: Some("abcabc".into()),
            limit: if overflow == Overflow::Slide { limit.or(Some(50)) } else { limit },
            stops: stops.clone(),
            parse_special: false,
            overflow,
            constraint: None,
            tools: None,
            tool_choice: ToolChoice::Auto,
            contexts: Vec::new(),
        };
        let mut conversation = Conversation::new(timeline, tokenizer, sampler.clone(), options).unwrap();
        conversation.set_speculator(speculator);
        conversation
    });
    let mut actions = Vec::new();
    for number in 0..rng.random_range(3..9) {
        let next = random_action(rng, number);
        actions.push(next.clone());
        let mut outcomes = Vec::new();
        for (conversation, file) in conversations.iter_mut().zip(&files) {
            let (outcome, pieces) = perform(conversation, &next, file, guessed);
            let ids = conversation.timeline().ids();
            if let Ok(Some((Ok((_, _, unprocessed, ..)), _))) = &outcome {
                *oracle.ids.borrow_mut() = ids.iter().copied().chain(*unprocessed).collect();
            }
            let logits: Vec<u32> = conversation.timeline().logits().iter().map(|logit| logit.to_bits()).collect();
            let steps = conversation.timeline().steps().to_vec();
            let (sampler, turns) = (conversation.sampler().saved(), conversation.turns().to_vec());
            let checkpoints = conversation.timeline().checkpoint_bytes();
            outcomes.push((outcome, pieces, steps, logits, sampler, turns, conversation.used(), checkpoints));
        }
        let with = outcomes.pop().unwrap();
        assert!(
            with == outcomes[0],
            "{what}, {actions:?}:\n{:?}\n{:?}\n{:?}\n{:?}",
            with.0,
            outcomes[0].0,
            with.2,
            outcomes[0].2
        );
    }
    let saved = conversations.each_mut().map(|conversation| {
        let file = folder.path().join("last");
        conversation.save(&file, &Watch { cancel: &NO_CANCEL, progress: &|_, _| () }).unwrap();
        fs::read(file).unwrap()
    });
    assert!(saved[0] == saved[1], "{what}, {actions:?}: the saved files differ");
}

#[test]
fn speculation_does_not_change_texts_or_state() {
    let (tokenizer, guessed) = (tokenizer(), [Guessed::default(), Guessed::default()]);
    for seed in 0..unless_emulated(20, 1) {
        let (mut rng, folder) = (rng(500 + seed), tempfile::tempdir().unwrap());
        let model = random_model(&mut rng, folder.path());
        for script in 0..unless_emulated(25, 3) {
            let what = format!("model {seed}, script {script}");
            check_texts(&model, &tokenizer, &mut rng, &guessed[0], &what);
            check_conversation(&model, &tokenizer, &mut rng, &guessed[1], &what);
        }
    }
    guessed.iter().for_each(|guessed| guessed.check(unless_emulated(1000, 1)));
}

/// A text that is drafted completely, seven tokens at a time, ends within a draft as it does with single steps.
#[test]
fn texts_end_within_a_draft_as_without_drafts() {
    let (tokenizer, folder) = (tokenizer(), tempfile::tempdir().unwrap());
    let model = random_model(&mut rng(1), folder.path());
    let options = SessionOptions { context: Some(64), threads: 1.try_into().ok(), ..SessionOptions::default() };
    let params = SamplingParams { temperature: 0.5, ..SamplingParams::default() };
    let text = |guesses: Option<&[u32]>, limit, stops: &[String], end: End, last: Option<u32>| {
        let (mut session, mut sampler) = (Session::new(&model, &options).unwrap(), Sampler::new(params.clone(), 5));
        let speculate = if guesses.is_some() { Speculate::Fixed(7) } else { Speculate::Off };
        let mut speculator = Speculator::new(speculate);
        if let Some(ids) = guesses {
            let ids = Rc::new(RefCell::new([&[1, 7], ids].concat()));
            speculator.add_source(Box::new(Oracle { ids, right: 8 }));
        }
        let (done, pieces) = with_end(end, |cancel, sink| {
            let prompt = &[1, 7];
            let request = Request { prompt, limit, stops, cancel: Some(cancel), ..Request::default() };
            generate_with(&mut session, &tokenizer, &mut sampler, &request, &mut speculator, sink)
        });
        let tokens = session.tokens();
        let logits = last.map(|last| session.decode(last).unwrap().to_vec());
        (done, pieces, tokens, logits, sampler.saved())
    };
    let whole = text(None, Some(30), &[], End::No, None).0.unwrap();
    assert_eq!(whole.ids.len(), 30);
    let drafted = text(Some(&whole.ids), Some(30), &[], End::No, None).0.unwrap();
    assert_eq!((drafted.timings.passes, drafted.timings.decode_steps), (4, 29), "the fewest possible passes");
    // Stop strings of two characters at the beginning of the text.
    let shown: Vec<char> = whole.text.chars().filter(|c| *c != '\u{fffd}').collect();
    let stop = |i: usize| shown.get(i..i + 2).map(|chars| chars.iter().collect::<String>());
    let mut ends = vec![];
    ends.extend((1..20).map(|limit| (Some(limit), Vec::new(), End::No)));
    ends.extend((0..8).filter_map(stop).map(|stop| (Some(30), vec![stop], End::No)));
    for after in 0..8 {
        ends.extend([End::Cancel(after), End::Closed(after), End::Full(after)].map(|end| (Some(30), Vec::new(), end)));
    }
    ends.push((None, Vec::new(), End::No)); // the context is full
    for (limit, stops, end) in ends {
        let what = format!("{limit:?}, {stops:?}, {end:?}");
        let last = limit.map(|_| 9);
        let single = text(None, limit, &stops, end, last);
        let several = text(Some(&whole.ids), limit, &stops, end, last);
        assert_eq!(comparable(single.0), comparable(several.0), "{what}");
        assert_eq!((single.1, single.2, single.4), (several.1, several.2, several.4), "{what}");
        assert!(single.3 == several.3, "{what}: the next logits differ");
    }
}

/// A model whose verification of three or more tokens fails.
struct Fragile<'m>(Session<'m>);

impl TokenModel for Fragile<'_> {
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> hymba::Result<&[f32]> {
        self.0.prefill(ids, cancel)
    }
    fn decode(&mut self, id: u32) -> hymba::Result<&[f32]> {
        self.0.decode(id)
    }
    fn tokens(&self) -> usize {
        self.0.tokens()
    }
    fn context(&self) -> usize {
        self.0.context()
    }
    fn max_guesses(&self) -> usize {
        self.0.max_guesses()
    }
    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> hymba::Result<bool>) -> hymba::Result<()> {
        let mut ids = ids.to_vec();
        if ids.len() > 2 {
            ids[2] = VOCAB as u32; // out of range: the pass fails
        }
        TokenModel::verify(&mut self.0, &ids, is_right)
    }
}

#[test]
fn a_failed_verification_does_not_change_the_text() {
    let (tokenizer, folder) = (tokenizer(), tempfile::tempdir().unwrap());
    let model = random_model(&mut rng(2), folder.path());
    let options = SessionOptions { context: Some(64), threads: 1.try_into().ok(), ..SessionOptions::default() };
    let text = |speculator: &mut Speculator| {
        let mut model = Fragile(Session::new(&model, &options).unwrap());
        let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 0);
        let request = Request { prompt: &[1, 7], limit: Some(30), ..Request::default() };
        let done = generate_with(&mut model, &tokenizer, &mut sampler, &request, speculator, &mut |_| Ok(())).unwrap();
        (done.timings, comparable(Ok(done)), model.0.decode(9).unwrap().to_vec())
    };
    let single = text(&mut Speculator::new(Speculate::Off));
    let mut speculator = Speculator::new(Speculate::Fixed(7));
    let ids = single.1.as_ref().unwrap().1.clone();
    let ids = Rc::new(RefCell::new([&[1, 7], &*ids].concat()));
    speculator.add_source(Box::new(Oracle { ids, right: 8 }));
    let several = text(&mut speculator);
    assert_eq!(single.1, several.1);
    assert!(single.2 == several.2);
    assert!(several.0.drafted > 0);
    let mut session = Session::new(&model, &options).unwrap();
    session.prefill(&[1, 7], &NO_CANCEL).unwrap();
    let bad = TokenModel::verify(&mut session, &[VOCAB as u32, 3], &mut |_| Ok(true));
    assert!(matches!(bad, Err(Error::TokenOutOfRange { .. })));
    assert_eq!(session.tokens(), 2);
}

/// A model without weights: passes have given costs, and the text is known.
struct Machine<'a> {
    /// Costs of passes of 1 to 8 tokens, relative to one token.
    costs: [f64; 8],
    microseconds: &'a AtomicU64,
    tokens: usize,
}

impl TokenModel for Machine<'_> {
    fn prefill(&mut self, _: &[u32], _: &AtomicBool) -> hymba::Result<&[f32]> {
        unreachable!("the text goes on")
    }
    fn decode(&mut self, _: u32) -> hymba::Result<&[f32]> {
        unreachable!("passes verify")
    }
    fn tokens(&self) -> usize {
        self.tokens
    }
    fn context(&self) -> usize {
        8192
    }
    fn max_guesses(&self) -> usize {
        7
    }
    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> hymba::Result<bool>) -> hymba::Result<()> {
        self.microseconds.fetch_add((1e4 * self.costs[ids.len() - 1]) as u64, Ordering::Relaxed);
        for _ in ids {
            self.tokens += 1;
            if !is_right(&[])? {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the speedup over single steps when `ids` are generated after `prompt`, and the tokens per pass.
fn speedup(prompt: &[u32], ids: &[u32], costs: [f64; 8]) -> (f64, f64) {
    let time: &'static AtomicU64 = Box::leak(Box::default());
    let mut machine = Machine { costs, microseconds: time, tokens: prompt.len() };
    let mut speculator = Speculator::new(Speculate::Auto);
    speculator.set_clock(Box::new(|| Duration::from_micros(time.load(Ordering::Relaxed))));
    speculator.read(prompt);
    let (mut at, mut passes) = (0, 0);
    while let Some(&id) = ids.get(at) {
        let mut next = at;
        let choose = &mut |_: &[f32]| {
            next += 1;
            Ok(ids.get(next).copied())
        };
        at += speculator.advance(&mut machine, id, usize::MAX, &Forced(&[]), choose).unwrap().tokens;
        passes += 1;
    }
    assert_eq!((at, machine.tokens), (ids.len(), prompt.len() + ids.len()));
    (1e4 * ids.len() as f64 / time.load(Ordering::Relaxed) as f64, ids.len() as f64 / f64::from(passes))
}

/// Costs of passes of 1 to 8 tokens of the 1.5B shape, measured on two threads of a Zen 5.
const AVX2: [f64; 8] = [1.0, 1.12, 1.16, 1.31, 1.57, 1.94, 2.2, 2.5];
const AVX_512: [f64; 8] = [1.0, 1.08, 1.09, 1.15, 1.24, 1.4, 1.5, 1.65];
/// Costs with which speculation cannot help.
const PROPORTIONAL: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

/// Copied text is generated several times as fast; text that cannot be guessed, and passes that cost as much as their tokens,
/// are not slowed down.
#[test]
fn draft_length_adapts_to_the_cost_of_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tasks = fs::read_to_string(root.join("tests/data/speculate/tasks.json")).unwrap();
    let tasks: Vec<Value> = serde_json::from_str(&tasks).unwrap();
    let tokenizer = Model::open(root.join("models/hymba-demo.gguf")).unwrap().tokenizer().unwrap();
    let mut copied = Vec::new();
    for task in &tasks {
        let text = |key: &str| task[key].as_str();
        let Some(answer) = text("answer") else { continue };
        let prompt = tokenizer.encode(text("prompt").or(text("text")).unwrap(), false).unwrap();
        let ids = tokenizer.encode_more(answer).unwrap();
        let [avx2, avx_512, proportional] = [AVX2, AVX_512, PROPORTIONAL].map(|costs| speedup(&prompt, &ids, costs));
        let name = text("name").unwrap();
        println!(
            "{name}: {} tokens, AVX2 {avx2:.2?}, AVX-512 {avx_512:.2?}, proportional {proportional:.2?}",
            ids.len()
        );
        if text("prompt").is_some() {
            copied.push((avx2.0, avx_512.0));
        } else {
            assert!(avx2.0 >= 0.99 && avx_512.0 >= 0.99, "{name}: {avx2:?} {avx_512:?}");
        }
        let lost = ids.len() as f64 * (1.0 / proportional.0 - 1.0);
        assert!(lost <= 5.0, "{name}: {proportional:?}");
    }
    // A repeated text, which is recognized after a while.
    let page =
        tokenizer.encode(&fs::read_to_string(root.join("tests/data/heldout.txt")).unwrap()[..4000], false).unwrap();
    let repeated = [AVX2, AVX_512].map(|costs| speedup(&page, &page, costs));
    println!("repeated: {} tokens, {repeated:.2?}", page.len());
    assert!(repeated[0].0 > 2.5 && repeated[1].0 > 3.5, "{repeated:?}");
    assert!(copied.len() >= 5 && copied.iter().all(|&(avx2, avx_512)| avx2 > 1.1 && avx_512 > 1.15), "{copied:?}");
    let noise: Vec<u32> = (0..1000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 12).collect();
    for costs in [AVX2, AVX_512, PROPORTIONAL] {
        assert!(speedup(&noise[..200], &noise[200..], costs).0 >= 0.99);
    }
}
