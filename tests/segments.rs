//! A pass over several texts: each is bit-identical to a pass of its own, whatever else is in the pass, and its state is
//! unchanged until it is committed.

#[path = "common/runner.rs"]
mod runner;
#[path = "common/texts.rs"]
mod texts;

use std::num::NonZeroUsize;

use hymba::{
    backend::Cpu,
    engine::{
        Model, Session, SessionOptions,
        batch::{PassInput, Wanted},
    },
    format::{CacheType, DType},
    forward::{DECODE_TOKENS, Phase},
    state::State,
};
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use runner::unless_emulated;
use texts::{Fault, FaultKind, Machine, Part, model, one_of, rng, small_config};

fn cpus(threads: usize) -> Vec<Cpu> {
    Cpu::all(NonZeroUsize::new(threads).unwrap())
}

fn cpu(kernels: usize, threads: usize) -> Cpu {
    cpus(threads).swap_remove(kernels)
}

/// Number of threads for a seed, sometimes more than the machine has cores.
fn threads(seed: u64) -> usize {
    let counts = unless_emulated(&[1, 2, 8, 3][..], &[1, 2]);
    counts[seed as usize % counts.len()]
}

/// Returns the earlier parts of a text, with lengths below and above every window.
fn history(rng: &mut ChaCha8Rng, vocab: usize) -> Vec<Part> {
    (0..rng.random_range(0..4)).map(|_| Part::random(rng, vocab)).collect()
}

/// Returns a text that has processed `history`, in memory that held another text before if `dirty`.
fn text(machine: &mut Machine<'_>, cache: CacheType, history: &[Part], dirty: Option<&mut ChaCha8Rng>) -> State {
    let mut state = machine.empty(cache);
    if let Some(rng) = dirty {
        machine.run(&mut state, &Part::prefill(rng, 64, 12)).unwrap();
        machine.clear(&mut state);
    }
    for part in history {
        machine.run(&mut state, part).unwrap();
    }
    state
}

/// Compares a pass over texts of random cache types, lengths and phases with passes over each alone.
fn check_pass(model: &Model, kernels: usize, rng: &mut ChaCha8Rng) {
    let vocab = model.config().vocab;
    let mut alone = Machine::new(model, cpu(kernels, 1));
    let mut together = Machine::new(model, cpu(kernels, one_of(rng, &[1, 2, 2, 3, 8])));
    for texts in if together.kernels() == "scalar" { &[3][..] } else { &[2, 3, 8] } {
        let mut wanted = Vec::new();
        for _ in 0..*texts {
            let (cache, past, part) = (one_of(rng, &CacheType::ALL), history(rng, vocab), Part::random(rng, vocab));
            let mut state = text(&mut alone, cache, &past, None);
            let logits = alone.run(&mut state, &part).unwrap();
            wanted.push((cache, past, part, logits, alone.image(&state)));
        }
        wanted.shuffle(rng);
        let mut states: Vec<State> =
            wanted.iter().map(|(cache, past, ..)| text(&mut together, *cache, past, Some(&mut *rng))).collect();
        let mut texts: Vec<_> = states.iter_mut().zip(&wanted).map(|(state, want)| (state, &want.2)).collect();
        let outcomes = together.pass(&mut texts, None);
        for (i, (outcome, (cache, _, part, logits, image))) in outcomes.into_iter().zip(&wanted).enumerate() {
            let Part { phase, ids, accepted } = part;
            let what = format!(
                "text {i} of {}, {cache:?}, {phase:?} of {}, {accepted} accepted, {} kernels",
                wanted.len(),
                ids.len(),
                together.kernels()
            );
            assert!(&outcome.unwrap() == logits, "logits of {what}");
            assert!(&together.image(&states[i]) == image, "state of {what}");
        }
    }
}

#[test]
fn logits_do_not_depend_on_other_texts_in_the_pass() {
    for (seed, &dtype) in DType::ALL.iter().enumerate() {
        let rng = &mut rng(seed as u64);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = model(&config, dtype, folder.path());
        for kernels in 0..cpus(1).len() {
            check_pass(&model, kernels, rng);
        }
    }
}

/// Meta tokens are processed in one pass or in two, next to other texts.
#[test]
fn the_meta_state_does_not_depend_on_other_texts_in_the_pass() {
    for seed in 0..unless_emulated(12, 3) {
        let rng = &mut rng(seed);
        let (mut config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        config.meta_tokens = rng.random_range(2..12);
        let model = model(&config, one_of(rng, &DType::ALL), folder.path());
        let mut machine = Machine::new(&model, cpu(0, threads(seed)));
        let wanted = CacheType::ALL.map(|cache| {
            let mut state = machine.zeroed(cache);
            let ids = (0..config.meta_tokens as u32).collect();
            machine.run(&mut state, &Part { ids, phase: Phase::Prefill, accepted: config.meta_tokens }).unwrap();
            (machine.image(&state), cache)
        });
        // texts start from the F32 state
        let (f32, start) = (&wanted[1].0, machine.empty(CacheType::F32));
        assert!(&machine.image(&start) == f32, "{config:?}");
        for (want, cache) in &wanted {
            let cut = rng.random_range(1..config.meta_tokens);
            let mut state = machine.zeroed(*cache);
            let mut others = [machine.empty(CacheType::F16), machine.empty(CacheType::Q8_0)];
            for ids in [0..cut as u32, cut as u32..config.meta_tokens as u32] {
                let part = Part { accepted: ids.len(), ids: ids.collect(), phase: Phase::Prefill };
                let [a, b] = &mut others;
                let (first, last) = (Part::random(rng, config.vocab), Part::random(rng, config.vocab));
                let mut texts = [(a, &first), (&mut state, &part), (b, &last)];
                machine.pass(&mut texts, None).into_iter().for_each(|outcome| drop(outcome.unwrap()));
            }
            assert!(&machine.image(&state) == want, "{cache:?}, cut at {cut}, {config:?}");
        }
    }
}

/// Decode segments for every text length around the boundaries of meta tokens, window and ring.
#[test]
fn decode_segments_equal_single_steps() {
    for seed in 0..unless_emulated(6, 1) {
        let rng = &mut rng(1000 + seed);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = model(&config, one_of(rng, &DType::ALL), folder.path());
        let kernels = rng.random_range(0..cpus(1).len());
        let mut machine = Machine::new(&model, cpu(kernels, threads(seed)));
        let cache = one_of(rng, &CacheType::ALL);
        let window = config.window.unwrap();
        for length in 0..2 * window + 2 {
            let past: Vec<Part> = match length {
                0 => Vec::new(),
                _ if rng.random_bool(0.5) => vec![Part::prefill(rng, config.vocab, length)],
                _ => (0..length).map(|_| Part::decode(rng, config.vocab, 1, 1)).collect(),
            };
            let ids: Vec<u32> = (0..=DECODE_TOKENS).map(|_| rng.random_range(0..config.vocab as u32)).collect();
            let single = |i: usize| Part { ids: vec![ids[i]], phase: Phase::Decode, accepted: 1 };
            let mut state = text(&mut machine, cache, &past, None);
            let start = machine.checkpoint(&state);
            let (mut images, mut logits) = (vec![machine.image(&state)], Vec::new());
            for i in 0..ids.len() {
                logits.push(machine.run(&mut state, &single(i)).unwrap());
                images.push(machine.image(&state));
            }
            for tokens in 1..=DECODE_TOKENS {
                for accepted in 0..=tokens {
                    let what = format!("{tokens} tokens after {length}, {accepted} accepted, {config:?}");
                    let part = Part { ids: ids[..tokens].to_vec(), phase: Phase::Decode, accepted };
                    machine.restore(&mut state, &start);
                    let got = machine.run(&mut state, &part).unwrap();
                    assert!(got == logits[..tokens].concat(), "logits of {what}");
                    assert!(machine.image(&state) == images[accepted], "state after {what}");
                    // and the text continues from there
                    assert!(machine.run(&mut state, &single(accepted)).unwrap() == logits[accepted], "after {what}");
                }
            }
        }
    }
}

/// One of four texts produces NaN, or keys too large for its cache, or is cancelled.
#[test]
fn a_failing_text_leaves_the_others_unchanged() {
    for seed in 0..unless_emulated(6, 1) {
        let rng = &mut rng(2000 + seed);
        let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
        let model = model(&config, one_of(rng, &DType::ALL), folder.path());
        let mut machine = Machine::new(&model, cpu(0, threads(seed)));
        let texts: Vec<_> = (0..4)
            .map(|i| {
                let cache = if i == 0 { CacheType::F16 } else { one_of(rng, &CacheType::ALL) };
                (cache, history(rng, config.vocab), Part::random(rng, config.vocab))
            })
            .collect();
        let wanted: Vec<_> = texts
            .iter()
            .map(|(cache, past, part)| {
                let mut state = text(&mut machine, *cache, past, None);
                let before = machine.image(&state);
                (before, machine.run(&mut state, part).unwrap(), machine.image(&state))
            })
            .collect();
        for layer in 0..config.layers {
            for kind in [FaultKind::Nan, FaultKind::Large, FaultKind::Cancel] {
                if kind == FaultKind::Large && !config.is_producer(layer) {
                    continue;
                }
                let mut order = [0, 1, 2, 3];
                if kind != FaultKind::Cancel {
                    order.shuffle(rng); // only the first text can be cancelled
                }
                let index = order.iter().position(|&i| i == 0).unwrap();
                let first = order[..index].iter().map(|&i| texts[i].2.ids.len()).sum();
                let fault = Fault { layer, rows: first..first + texts[0].2.ids.len(), kind };
                let mut states = order.map(|i| text(&mut machine, texts[i].0, &texts[i].1, None));
                let mut reads: Vec<_> = states.iter_mut().zip(order).map(|(state, i)| (state, &texts[i].2)).collect();
                let outcomes = machine.pass(&mut reads, Some(&fault));
                for (index, (outcome, i)) in outcomes.into_iter().zip(order).enumerate() {
                    let what = format!("text {i}, {kind:?} in layer {layer}, order {order:?}, {config:?}");
                    let image = machine.image(&states[index]);
                    if i > 0 {
                        assert!(outcome.unwrap() == wanted[i].1 && image == wanted[i].2, "{what}");
                        continue;
                    }
                    let error = outcome.expect_err(&what);
                    let expected = match kind {
                        FaultKind::Nan => format!("layer {layer} produced values that are not finite"),
                        FaultKind::Large => format!("layer {layer} produces keys or values that are too large"),
                        FaultKind::Cancel => "interrupted".into(),
                    };
                    assert!(error.starts_with(&expected), "{what}: {error}");
                    assert!(image == wanted[i].0, "{what}: the state has changed");
                    // and the same part can be processed again
                    assert!(machine.run(&mut states[index], &texts[i].2).unwrap() == wanted[i].1, "{what}");
                    assert!(machine.image(&states[index]) == wanted[i].2, "{what}");
                }
            }
        }
    }
}

/// Invalid input of one of three texts does not affect the others.
#[test]
fn an_invalid_text_leaves_the_others_unchanged() {
    let rng = &mut rng(3000);
    let (config, folder) = (small_config(rng), tempfile::tempdir().unwrap());
    let model = model(&config, DType::Q8_0, folder.path());
    let options = SessionOptions { context: Some(12), ..SessionOptions::default() };
    let alone = |ids: &[u32]| Session::new(&model, &options).unwrap().prefill(ids, &texts::NO_CANCEL).unwrap().to_vec();
    let wanted = [alone(&[1, 2, 3]), alone(&[4, 5])];
    let (long, unknown) = ([7; 13], [1, config.vocab as u32]);
    for (ids, phase, expected) in [
        (&long[..], Phase::Prefill, "13 more tokens do not fit"),
        (&unknown, Phase::Prefill, "token id 64 is out of range"),
        (&[], Phase::Decode, "no tokens to process"),
        (&[7; DECODE_TOKENS + 1], Phase::Decode, "a decode pass takes at most 8 tokens"),
    ] {
        let mut session = Session::new(&model, &options).unwrap();
        let (batch, _) = session.parts();
        let mut three = [0; 3].map(|_| batch.text(12, CacheType::F16).unwrap());
        let parts = [(&[1, 2, 3][..], Phase::Prefill), (ids, phase), (&[4, 5], Phase::Prefill)];
        let input = |(text, (ids, phase))| PassInput { text, ids, phase, logits: Wanted::Last, cancel: None };
        let mut pass = batch.run(three.iter_mut().zip(parts).map(input)).unwrap();
        for (i, want) in [(0, &wanted[0]), (2, &wanted[1])] {
            assert!(pass.logits(i).unwrap() == want, "{expected}: text {i}");
            pass.commit(i, parts[i].0.len());
        }
        let error = pass.logits(1).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        drop(pass);
        assert_eq!(three.map(|text| text.tokens()), [3, 0, 2], "{expected}");
    }
}
