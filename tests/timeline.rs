//! After any sequence of turns, rewinds, branches, saves and loads, the logits of a timeline are bit-identical to those of a
//! session that has processed only the remaining tokens, each in its phase.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use common::unless_emulated;
use hymba::{
    Error,
    engine::{
        Model, Session, SessionOptions, Timeline,
        generate::TokenModel,
        timeline::{Step, Watch, decoded, passes, prefilled},
    },
    format::{CacheType, DType},
    forward::Phase,
    quant::{Options, TypePlan, convert},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

static NO_CANCEL: AtomicBool = AtomicBool::new(false);
static CANCEL: AtomicBool = AtomicBool::new(true);

fn watch(cancel: &AtomicBool) -> Watch<'_> {
    Watch { cancel, progress: &|_, _| () }
}

/// Converts a golden checkpoint to F32; returns the file.
fn golden(case: &str, folder: &Path) -> PathBuf {
    let file = folder.join(format!("{case}.gguf"));
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    let options = Options { types: TypePlan::Uniform(DType::F32), ..Options::default() };
    convert(&from, &file, &options, &mut |_| {}, &NO_CANCEL).unwrap();
    file
}

fn demo() -> Model {
    Model::open(Path::new(&common::demo_of_any_depth())).unwrap()
}

fn session(model: &Model, context: usize, cache: CacheType, threads: usize) -> Session<'_> {
    let options =
        SessionOptions { context: Some(context), cache, threads: threads.try_into().ok(), ..SessionOptions::default() };
    Session::new(model, &options).unwrap()
}

/// Returns the logits of a new session after `steps`.
fn replayed(model: &Model, context: usize, cache: CacheType, steps: &[Step]) -> Vec<f32> {
    let mut session = session(model, context, cache, 1);
    let mut logits = Vec::new();
    for pass in passes(steps) {
        let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
        logits = match pass[0].phase {
            Phase::Prefill => session.prefill(&ids, &NO_CANCEL).unwrap().to_vec(),
            Phase::Decode => session.decode(ids[0]).unwrap().to_vec(),
        };
    }
    logits
}

/// A branch: its steps, and the positions where its turns begin.
#[derive(Clone, Default)]
struct Branch {
    steps: Vec<Step>,
    turns: Vec<usize>,
}

/// Random user actions: turns, undo, branch, switch, save, load, cancel.
fn random_history(
    model: &Model,
    context: usize,
    cache: CacheType,
    budget: usize,
    seed: u64,
    moves: usize,
    folder: &Path,
) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let vocab = model.config().vocab as u32;
    let ids = |rng: &mut ChaCha8Rng, n: usize| (0..n).map(|_| rng.random_range(0..vocab)).collect::<Vec<u32>>();
    let file = folder.join("session");
    let mut saved: Option<Branch> = None;
    let mut branches: [Branch; 3] = Default::default();
    let mut current = 0;
    let mut timeline = Timeline::new(session(model, context, cache, 2), budget);
    for number in 0..moves {
        let length = branches[current].steps.len();
        let action = rng.random_range(0..12);
        match action {
            // a turn
            0..=4 => {
                let (prompt, reply) = (rng.random_range(1..40), rng.random_range(0..30));
                if length + prompt + reply > context {
                    continue;
                }
                branches[current].steps.extend(prefilled(&ids(&mut rng, prompt)));
                timeline.seek(&branches[current].steps, &watch(&NO_CANCEL)).unwrap();
                timeline.checkpoint().unwrap();
                for id in ids(&mut rng, reply) {
                    timeline.decode(id).unwrap();
                    branches[current].steps.push(decoded(id));
                }
                timeline.checkpoint().unwrap();
                branches[current].turns.push(length);
            }
            // undo to the beginning of a turn, or to any position; cancelled at first
            5 | 6 if length > 0 => {
                let turn = rng.random_range(0..branches[current].turns.len());
                let to = if action == 5 { branches[current].turns[turn] } else { rng.random_range(0..length) };
                branches[current].steps.truncate(to);
                branches[current].turns.retain(|&turn| turn < to);
                if let Err(e) = timeline.seek(&branches[current].steps, &watch(&CANCEL)) {
                    assert!(matches!(e, Error::Cancelled) && branches[current].steps.starts_with(timeline.steps()));
                }
                timeline.seek(&branches[current].steps, &watch(&NO_CANCEL)).unwrap();
            }
            // a new branch from here, or a switch to another one
            7..=9 => {
                timeline.stash(&current.to_string()).unwrap();
                let other = (current + rng.random_range(1..3)) % branches.len();
                if action == 7 {
                    branches[other] = branches[current].clone();
                } else {
                    timeline.unstash(&other.to_string());
                }
                current = other;
                timeline.seek(&branches[current].steps, &watch(&NO_CANCEL)).unwrap();
            }
            10 => {
                timeline.save(&file, &branches[current].turns, rng.random_bool(0.5)).unwrap();
                saved = Some(branches[current].clone());
            }
            // in the same timeline, or in a new one with other threads and another context size
            11 if saved.is_some() => {
                if rng.random_bool(0.5) {
                    timeline = Timeline::new(session(model, context + 5, cache, 1), budget);
                }
                let turns: Vec<usize> = timeline.load(&file, |turns, _| Ok(turns)).unwrap();
                branches[current] = Branch { steps: timeline.steps().to_vec(), turns };
                let saved = saved.as_ref().unwrap();
                assert!(branches[current].steps == saved.steps && branches[current].turns == saved.turns);
            }
            _ => continue,
        }
        assert!(timeline.checkpoint_bytes() <= budget && timeline.steps() == branches[current].steps);
        let want = replayed(model, context + 5, cache, timeline.steps());
        assert!(timeline.logits() == want, "seed {seed}, move {number} (action {action}): the logits differ");
    }
}

#[test]
fn random_histories_equal_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    for (case, contexts) in [("tiny-a", [300, 200]), ("tiny-b", [150, 12])] {
        let model = Model::open(golden(case, folder.path())).unwrap();
        for context in contexts {
            for (seed, cache, budget) in
                [(1, CacheType::F16, 1 << 30), (2, CacheType::F32, 400_000), (3, CacheType::F16, 0)]
            {
                random_history(&model, context, cache, budget, seed, unless_emulated(100, 15), folder.path());
            }
        }
    }
}

#[test]
fn random_histories_of_the_demo_equal_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    for cache in [CacheType::F16, CacheType::Q8_0] {
        random_history(&demo(), 400, cache, 256 << 20, 1, unless_emulated(12, 4), folder.path());
    }
}

/// Rewinding to a checkpoint in memory processes no tokens; without it, the tokens are processed again.
#[test]
fn checkpoints_avoid_reprocessing() {
    let model = demo();
    let ids: Vec<u32> = (3..200).collect();
    for (budget, costs) in [(256 << 20, 0), (0, 150)] {
        let mut timeline = Timeline::new(session(&model, 400, CacheType::F16, 2), budget);
        let steps: Vec<Step> = prefilled(&ids[..150]).chain(prefilled(&ids[150..])).collect();
        timeline.seek(&steps[..150], &watch(&NO_CANCEL)).unwrap();
        timeline.checkpoint().unwrap();
        timeline.stash("other").unwrap();
        timeline.seek(&steps, &watch(&NO_CANCEL)).unwrap();
        let before = timeline.evaluated();
        timeline.seek(&steps[..150], &watch(&NO_CANCEL)).unwrap();
        assert_eq!(timeline.evaluated() - before, costs);
        let other: Vec<Step> = prefilled(&ids[50..]).collect();
        timeline.seek(&other, &watch(&NO_CANCEL)).unwrap();
        let before = timeline.evaluated();
        timeline.unstash("other");
        timeline.seek(&steps[..150], &watch(&NO_CANCEL)).unwrap();
        assert_eq!(timeline.evaluated() - before, costs);
    }
}

/// A restored session of 4,000 tokens continues bit-identically, at less than 2% of the cost of processing it again.
#[test]
fn restoring_a_long_session_is_faster_than_prefill() {
    let long = unless_emulated(4000, 300);
    let context = long + 200;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long");
    let model = demo();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let ids: Vec<u32> = (0..long).map(|_| rng.random_range(3..8000)).collect();
    let mut steps: Vec<Step> = prefilled(&ids).collect();
    steps[long - unless_emulated(200, 20)..].iter_mut().for_each(|step| *step = decoded(step.id));

    let mut original = Timeline::new(session(&model, context, CacheType::F16, 2), 0);
    let start = Instant::now();
    original.seek(&steps, &watch(&NO_CANCEL)).unwrap();
    let recomputed = start.elapsed();
    original.save(&file, &(), false).unwrap();

    let mut loaded = Timeline::new(session(&model, context, CacheType::F16, 2), 0);
    // the best of three, as the machine may be shared
    let restored = (0..3).fold(Duration::MAX, |best, _| {
        let start = Instant::now();
        loaded.load(&file, |(), _| Ok(())).unwrap();
        best.min(start.elapsed())
    });
    assert!(loaded.logits() == original.logits());
    let (a, b) = (original.decode(5).unwrap(), loaded.decode(5).unwrap());
    assert!(a == b, "the logits of the next token differ");
    println!(
        "{:.0} kB, restored in {restored:?}, recomputed in {recomputed:?}",
        fs::metadata(&file).unwrap().len() as f64 / 1e3
    );
    assert!(restored.as_secs_f64() < 0.02 * recomputed.as_secs_f64(), "{restored:?} of {recomputed:?}");
}

#[test]
fn a_failed_load_leaves_the_timeline_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = Model::open(golden("tiny-a", folder.path())).unwrap();
    let other = Model::open(golden("tiny-c", folder.path())).unwrap();
    let steps: Vec<Step> = prefilled(&[1, 2, 3, 4, 5]).collect();
    let save = |model, context, cache, file: &Path| {
        let mut timeline = Timeline::new(session(model, context, cache, 1), 1 << 20);
        timeline.seek(&steps, &watch(&NO_CANCEL)).unwrap();
        timeline.save(file, &"more", true).unwrap();
    };
    save(&model, 20, CacheType::F16, &path("good"));
    save(&model, 20, CacheType::F32, &path("f32"));
    save(&other, 20, CacheType::F16, &path("other"));
    let mut damaged = fs::read(path("good")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(path("damaged"), &damaged).unwrap();

    let mut timeline = Timeline::new(session(&model, 4, CacheType::F16, 1), 1 << 20);
    timeline.seek(&steps[..3], &watch(&NO_CANCEL)).unwrap();
    let before = timeline.logits().to_vec();
    for (name, reason) in [
        ("none", "cannot open"),
        ("tiny-a.gguf", "is not a hymba session file"),
        ("damaged", "is damaged"),
        ("other", "was created with a different model"),
        ("f32", "has a KV cache of type f32, but the current type is f16"),
        ("good", "has 5 tokens, but the context size is 4"),
    ] {
        let error = timeline.load(&path(name), |more: String, _| Ok(more)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
        assert!(timeline.steps() == &steps[..3] && timeline.logits() == before);
    }
    let mut timeline = Timeline::new(session(&model, 5, CacheType::F16, 1), 1 << 20);
    assert_eq!(timeline.load(&path("good"), |more: String, _| Ok(more)).unwrap(), "more");
    assert_eq!(timeline.steps(), steps);
}

/// A file with a valid checksum may contain any values; the error must blame the file, not the model.
#[test]
fn a_session_with_non_finite_values_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad");
    let model = Model::open(golden("tiny-a", folder.path())).unwrap();
    let steps: Vec<Step> = prefilled(&[1, 2, 3, 4, 5]).collect();
    let mut timeline = Timeline::new(session(&model, 20, CacheType::F16, 1), 1 << 20);
    timeline.seek(&steps, &watch(&NO_CANCEL)).unwrap();
    timeline.save(&file, &(), false).unwrap();
    let good = fs::read(&file).unwrap();
    let before = timeline.logits().to_vec();
    let logits = 4 * before.len();
    let header = 16 + u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    // F16 keys come first, logits last, states before them.
    for at in [header, good.len() - 32 - logits - 4, good.len() - 32 - 4] {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        bad[at..at + 2].copy_from_slice(&if at == header { [0x00, 0x7c] } else { [0, 0] });
        let end = bad.len() - 32;
        let hash = blake3::hash(&bad[..end]);
        bad[end..].copy_from_slice(hash.as_bytes());
        fs::write(&file, bad).unwrap();
        let error = timeline.load(&file, |(), _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("bad: is damaged: it contains values that are not finite"), "{at}: {error}");
        assert!(timeline.steps() == steps && timeline.logits() == before);
    }
}

/// Undo, regenerate and switch take less than 50 ms in the shape of the 1.5B model.
#[test]
fn rewinding_the_1_5b_shape_takes_under_50_ms() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("random.gguf");
    hymba::quant::random_checkpoint("hymba-1.5b", DType::Q4_0, &file, &NO_CANCEL).unwrap();
    let model = Model::open(&file).unwrap();
    let mut timeline = Timeline::new(session(&model, 1400, CacheType::F16, 2), 256_000_000);
    // longer than the window, for the largest amount of data to copy
    let steps: Vec<Step> = prefilled(&(0..1100).collect::<Vec<_>>()).collect();
    timeline.seek(&steps, &watch(&NO_CANCEL)).unwrap();
    timeline.checkpoint().unwrap();
    let logits = timeline.logits().to_vec();
    let spent = |timeline: &mut Timeline<'_>, switch: bool| {
        timeline.stash("other").unwrap();
        timeline.decode(1).unwrap();
        let start = Instant::now();
        if switch {
            timeline.stash("present").unwrap();
            timeline.unstash("other");
        }
        timeline.seek(&steps, &watch(&NO_CANCEL)).unwrap();
        let spent = start.elapsed();
        assert!(timeline.evaluated() <= 1110 && timeline.logits() == logits);
        spent
    };
    // the best of several, as the machine may be shared
    let [rewound, switched] = [false, true].map(|switch| (0..4).map(|_| spent(&mut timeline, switch)).min().unwrap());
    println!(
        "rewound in {rewound:?}, switched in {switched:?}, {:.0} MB of checkpoints",
        timeline.checkpoint_bytes() as f64 / 1e6
    );
    assert!(rewound < Duration::from_millis(50) && switched < Duration::from_millis(50), "{rewound:?}, {switched:?}");
}
