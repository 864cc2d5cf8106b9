//! The same file, prompt and seed give bit-identical logits for any number of threads, any chunk length, and after a restore.

mod common;

use std::{num::NonZeroUsize, path::Path, sync::atomic::AtomicBool};

use hymba::{
    engine::{Model, Session, SessionOptions, Timeline, generate::TokenModel},
    format::CacheType,
};

static NO_CANCEL: AtomicBool = AtomicBool::new(false);
const STEPS: usize = 12;

fn demo() -> (Model, Vec<u32>) {
    let model = Model::open(Path::new(&common::demo_of_any_depth())).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let book = format!("{}/tests/data/heldout.txt", env!("CARGO_MANIFEST_DIR"));
    let book: String = std::fs::read_to_string(book).unwrap().chars().take(4000).collect();
    let mut ids = tokenizer.encode(&book, true).unwrap();
    assert!(ids.len() > 600, "longer than the longest chunk");
    ids.truncate(common::unless_emulated(600, 90));
    (model, ids)
}

fn options(threads: usize, chunk: usize, stored_meta_state: bool) -> SessionOptions {
    let threads = NonZeroUsize::new(threads);
    SessionOptions { context: Some(700), threads, chunk, stored_meta_state, ..SessionOptions::default() }
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// Processes `ids`, then decodes greedily: returns the logits after the prompt and after every step, and the tokens.
fn greedy(session: &mut impl TokenModel, ids: &[u32]) -> (Vec<Vec<f32>>, Vec<u32>) {
    let mut all = vec![session.prefill(ids, &NO_CANCEL).unwrap().to_vec()];
    let mut tokens = Vec::new();
    for _ in 0..STEPS {
        tokens.push(argmax(all.last().unwrap()));
        all.push(session.decode(*tokens.last().unwrap()).unwrap().to_vec());
    }
    (all, tokens)
}

#[test]
fn logits_do_not_depend_on_threads_or_a_restore() {
    let (model, ids) = demo();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    let timeline = |threads| Timeline::new(Session::new(&model, &options(threads, 256, true)).unwrap(), 0);
    let mut first = timeline(1);
    first.prefill(&ids, &NO_CANCEL).unwrap();
    first.save(&file, &(), false).unwrap();
    let want = greedy(&mut timeline(1), &ids);
    for &threads in common::unless_emulated(&[1, 2, 4, 8][..], &[1, 3]) {
        assert!(greedy(&mut timeline(threads), &ids) == want, "{threads} threads");
        let mut restored = timeline(threads);
        restored.load(&file, |(), _| Ok(())).unwrap();
        assert!(greedy(&mut restored, &[]) == want, "restored, {threads} threads");
    }
}

#[test]
fn logits_do_not_depend_on_chunks_or_the_stored_meta_state() {
    let (input, mut ids) = (common::demo_of_any_depth(), demo().1);
    ids.truncate(common::unless_emulated(600, 40)); // F32 products are slow under emulation
    let folder = tempfile::tempdir().unwrap();
    for (dtype, cache) in [("f32", CacheType::F32), ("q4_0", CacheType::F16), ("q8_0", CacheType::Q8_0)] {
        let file = folder.path().join(dtype);
        common::quantize(&input, &file, &["--type", dtype, "--rounding", "nearest"]);
        let model = Model::open(&file).unwrap();
        let run = |chunk, stored_meta_state| {
            let options = SessionOptions { cache, ..options(2, chunk, stored_meta_state) };
            greedy(&mut Session::new(&model, &options).unwrap(), &ids)
        };
        let want = run(256, true);
        for &chunk in common::unless_emulated(&[1, 7, 64, 255, 512][..], &[1, 7, 64]) {
            for stored in [true, false] {
                assert!(run(chunk, stored) == want, "{dtype}, chunks of {chunk}, stored meta state {stored}");
            }
        }
    }
}
