//! Work is linear in the size of the input, or n log n. It is measured as allocated bytes, not as time: repeated copies or
//! collections of earlier items would make them quadratic.

#[path = "common/counting.rs"]
mod counting;

use std::{fs, path::Path, sync::atomic::AtomicBool};

use counting::{assert_linear, count_allocations};
use hymba::{
    engine::{
        Model, Session, SessionOptions, Timeline,
        generate::{Request, TokenModel, generate},
        timeline::{Step, Watch, decoded},
    },
    format::{
        Blob, DType,
        gguf::{Gguf, Layout, Metadata},
        packed::Packing,
    },
    quant::{Options, TypePlan, convert},
    sample::{Sampler, SamplingParams},
    text::Tokenizer,
};
use serde_json::json;

static NO_CANCEL: AtomicBool = AtomicBool::new(false);
const WATCH: Watch<'_> = Watch { cancel: &NO_CANCEL, progress: &|_, _| () };

fn demo() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hymba-demo.gguf")).unwrap()
}

/// Returns a small random model, in F32.
fn tiny(folder: &Path) -> Model {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-a");
    let options = Options { types: TypePlan::Uniform(DType::F32), ..Options::default() };
    convert(&from, &folder.join("model.gguf"), &options, &mut |_| {}, &NO_CANCEL).unwrap();
    Model::open(folder.join("model.gguf")).unwrap()
}

fn timeline(model: &Model, context: usize, budget: usize) -> Timeline<'_> {
    let options = SessionOptions { context: Some(context), threads: 1.try_into().ok(), ..SessionOptions::default() };
    Timeline::new(Session::new(model, &options).unwrap(), budget)
}

/// Returns English text of this many bytes.
fn prose(bytes: usize) -> String {
    "Once upon a time there was a fox who lived in 1999 hollow trees.\n".repeat(bytes / 65 + 1)[..bytes].into()
}

#[test]
fn tokenization_is_linear() {
    let tokenizer = demo().tokenizer().unwrap();
    tokenizer.encode(&prose(100_000), false).unwrap(); // initializes what is computed once
    let split = assert_linear("bytes of a text", 256 << 10, |n| drop(tokenizer.encode(&prose(n), false).unwrap()));
    // Tokenization takes 140 bytes per byte of text, but only for a part of 32 KiB at a time.
    assert!(split.peak < (10 + 4 + 8) * (1 << 20), "{} bytes at once for a text of 1 MiB", split.peak);
    let ids = tokenizer.encode(&prose(40_000), false).unwrap();
    assert_linear("tokens of a text", 2000, |n| drop(tokenizer.decode(&ids[..n])));
}

/// A model that always returns the same logits.
struct Constant {
    tokens: usize,
    logits: Vec<f32>,
}

impl TokenModel for Constant {
    fn prefill(&mut self, ids: &[u32], _: &AtomicBool) -> hymba::Result<&[f32]> {
        self.tokens += ids.len();
        Ok(&self.logits)
    }
    fn decode(&mut self, _: u32) -> hymba::Result<&[f32]> {
        self.tokens += 1;
        Ok(&self.logits)
    }
    fn tokens(&self) -> usize {
        self.tokens
    }
    fn context(&self) -> usize {
        1 << 20
    }
}

#[test]
fn generation_is_linear() {
    let tokenizer = demo().tokenizer().unwrap();
    let logits: Vec<f32> = (0..tokenizer.vocab()).map(|id| if id == 300 { 1.0 } else { 0.0 }).collect();
    let params = SamplingParams { temperature: 0.0, repeat_penalty: 1.1, ..SamplingParams::default() };
    assert_linear("generated tokens", 1000, |n| {
        let (mut model, stops) = (Constant { tokens: 0, logits: logits.clone() }, ["never".to_owned()]);
        let request = Request { prompt: &[1], limit: Some(n), stops: &stops, ..Request::default() };
        let mut sampler = Sampler::new(params.clone(), 0);
        generate(&mut model, &tokenizer, &mut sampler, &request, &mut |_| Ok(())).unwrap();
    });
}

#[test]
fn parsing_a_gguf_file_is_linear() {
    assert_linear("tensors and keys", 1000, |n| {
        let mut metadata = Metadata::default();
        (0..n).for_each(|i| metadata.set(format!("key.{i}"), vec![i as u64]));
        let tensors = (0..n).map(|i| (format!("tensor.{i}"), vec![16], DType::F32, Packing::Plain)).collect();
        let layout = Layout::new(metadata, tensors).unwrap();
        let mut file = layout.header().to_vec();
        file.resize(layout.size as usize, 0);
        assert_eq!(Gguf::parse("many.gguf", Blob::from_vec(file)).unwrap().tensors.len(), n);
    });
}

#[test]
fn loading_added_tokens_is_linear() {
    assert_linear("added tokens", 1000, |n| {
        let added: Vec<_> = (0..n)
            .map(|i| {
                json!({"id": i + 1, "content": format!("<added {i}>"), "special": true, "single_word": false,
                       "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        let mut metadata = Metadata::default();
        metadata.set("tokenizer.huggingface.json", tokenizer.to_string());
        assert_eq!(Tokenizer::from_metadata(&metadata, "many.gguf").unwrap().vocab(), n + 1);
    });
}

#[test]
fn storing_checkpoints_is_linear() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny(folder.path());
    // Within the budget, and beyond it, where the oldest are evicted.
    for budget in [1 << 30, 2_000_000] {
        assert_linear("checkpoints", 500, |n| {
            let mut timeline = timeline(&model, 2100, budget);
            for id in 0..n {
                timeline.decode(id as u32 % 100).unwrap();
                timeline.checkpoint().unwrap();
            }
            assert!(timeline.checkpoint_bytes() <= budget);
        });
    }
}

/// A session file may contain any number of checkpoints: loading it takes memory only for those within the budget.
#[test]
fn loading_checkpoints_stays_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (tiny(folder.path()), folder.path().join("session"));
    let save = |n: usize| {
        let mut timeline = timeline(&model, 2100, 1 << 30);
        let steps: Vec<Step> = (0..n).map(|id| decoded(id as u32 % 100)).collect();
        for length in 1..=n {
            timeline.seek(&steps[..length], &WATCH).unwrap();
            timeline.checkpoint().unwrap();
        }
        timeline.save(&file, &(), true).unwrap();
        fs::metadata(&file).unwrap().len() as usize
    };
    const BUDGET: usize = 1_000_000;
    let bytes = save(400);
    assert!(bytes > 8 * BUDGET, "{bytes}");
    let mut reader = timeline(&model, 2100, BUDGET);
    let (_, allocations) = count_allocations(|| reader.load(&file, |(), _| Ok(())).unwrap());
    assert!(allocations.peak < 3 * BUDGET + (4 << 20), "{} bytes for a file of {bytes}", allocations.peak); // the file is read in pieces of 4 MiB
    assert!(reader.checkpoint_bytes() <= BUDGET && reader.checkpoint_bytes() > BUDGET / 2);
    // The checkpoints that were kept are correct.
    let steps: Vec<Step> = reader.steps().to_vec();
    let earlier = &steps[..steps.len() - 10];
    let before = reader.evaluated();
    reader.seek(earlier, &WATCH).unwrap();
    assert_eq!(reader.evaluated(), before, "the last checkpoints were dropped");
    let mut again = timeline(&model, 2100, 0);
    again.seek(earlier, &WATCH).unwrap();
    assert!(reader.logits() == again.logits());
}
