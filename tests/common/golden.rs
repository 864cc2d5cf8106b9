//! Random checkpoints with the results of the official code, converted and opened.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use hymba::{
    engine::{Model, Session, SessionOptions},
    format::{CacheType, DType},
    quant::{Options, Rounding, TypePlan, convert},
};
use safetensors::SafeTensors;

/// Allowed difference of a logit, times max(1, the largest logit).
pub const TOLERANCE: f32 = 2e-4;
pub static NO_CANCEL: AtomicBool = AtomicBool::new(false);

/// Returns the root folder of the repository.
pub fn root() -> &'static Path {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    crates.into_iter().find(|folder| folder.join("tests/golden").is_dir()).unwrap()
}

pub struct Case {
    pub name: String,
    pub model: Model,
    golden: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Case {
    /// Converts the checkpoint in `folder` to F32 and opens it.
    pub fn open(folder: &Path) -> Self {
        Self::convert(folder, folder, TypePlan::Uniform(DType::F32), true)
    }

    /// Converts `input`, which is the checkpoint in `folder` or a file converted from it, and opens the result.
    pub fn convert(folder: &Path, input: &Path, types: TypePlan, packed: bool) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("model.gguf");
        let options = Options { types, packed, rounding: Rounding::Nearest, ..Options::default() };
        convert(input, &file, &options, &mut |_| {}, &NO_CANCEL).unwrap();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into(),
            model: Model::open(&file).unwrap(),
            golden: fs::read(folder.join("golden.safetensors")).unwrap(),
            folder: temporary,
        }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.golden).unwrap()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors()
            .tensor(name)
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.tensors()
            .tensor(name)
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn prompts(&self) -> usize {
        (0..).take_while(|i| self.tensors().tensor(&format!("p{i}.ids")).is_ok()).count()
    }

    pub fn session(&self, chunk: usize, threads: usize, stored_meta_state: bool) -> Session<'_> {
        let threads = threads.try_into().ok();
        Session::new(&self.model, &SessionOptions { threads, ..options(chunk, stored_meta_state) }).unwrap()
    }

    /// Returns the logits of all positions of a prompt, `[tokens, vocab]`.
    pub fn prefill(&self, session: &mut Session<'_>, ids: &[u32]) -> Vec<f32> {
        let mut rows = Vec::new();
        session
            .prefill_all(ids, &NO_CANCEL, |_, logits| {
                rows.extend_from_slice(logits);
                Ok(())
            })
            .unwrap();
        rows
    }
}

pub fn options(chunk: usize, stored_meta_state: bool) -> SessionOptions {
    let context = Some(2048);
    SessionOptions { context, cache: CacheType::F32, stored_meta_state, chunk, ..SessionOptions::default() }
}

pub fn cases() -> Vec<Case> {
    let extra = env::var_os("HYMBA_GOLDEN_EXTRA").map(PathBuf::from);
    small_cases_and(extra)
}

pub fn small_cases_and(extra: Option<PathBuf>) -> Vec<Case> {
    let mut roots = vec![root().join("tests/golden")];
    roots.extend(extra);
    let mut folders: Vec<_> = roots
        .iter()
        .flat_map(|root| fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.join("golden.safetensors").exists())
        .collect();
    folders.sort();
    assert!(folders.len() >= 4, "golden cases are missing");
    folders.iter().map(|folder| Case::open(folder)).collect()
}

pub fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let bound = tolerance * want.iter().fold(1f32, |m, v| m.max(v.abs()));
    let worst =
        got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) });
    assert!(worst <= bound, "{what}: the largest difference is {worst:e}, allowed is {bound:e}");
}

pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap() as u32
}

/// Compares the first `max` prompts, each processed in the session that `session` returns for its index.
pub fn check_prompts<'a>(case: &'a Case, max: usize, session: impl Fn(usize) -> Session<'a>) {
    let vocab = case.model.config().vocab;
    for i in 0..case.prompts().min(max) {
        let what = format!("{}, prompt {i}", case.name);
        let (ids, generated) = (case.ids(&format!("p{i}.ids")), case.ids(&format!("p{i}.gen_ids")));
        let want = case.floats(&format!("p{i}.logits"));
        let mut session = session(i);
        let got = case.prefill(&mut session, &ids);
        close(&format!("{what}: prefill"), &got[got.len() - want.len()..], &want, TOLERANCE);

        let want = case.floats(&format!("p{i}.gen_logits"));
        let mut logits = got[got.len() - vocab..].to_vec();
        for (step, want) in want.chunks(vocab).enumerate() {
            close(&format!("{what}: step {step}"), &logits, want, TOLERANCE);
            assert_eq!(argmax(&logits), generated[step], "{what}: step {step}");
            logits = session.decode(generated[step]).unwrap().to_vec();
        }
    }
}
