//! The forward pass against what the official code answers for random checkpoints (`golden/README.md`): every case in
//! `tests/golden`, and in the folder that `HYMBA_GOLDEN_EXTRA` names.

mod common;

use std::{
    env, fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use hymba::{
    backend::{cpu::Cpu, metal::Metal, timed::Timed},
    engine::{Model, Session, SessionOptions, compute_meta_state},
    format::{CacheType, DType},
    quant::{Options, Recipe, Rounding, convert, mixture},
};
use regex::Regex;
use safetensors::SafeTensors;

/// Allowed difference of a logit, times max(1, the largest logit).
const TOLERANCE: f32 = 2e-4;
static GO_ON: AtomicBool = AtomicBool::new(false);

struct Case {
    name: String,
    model: Model,
    golden: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Case {
    /// Converts the checkpoint in `folder` to F32 and opens it.
    fn open(folder: &Path) -> Self {
        Self::convert(folder, folder, DType::F32, Vec::new(), true)
    }

    /// Converts `input`, made from the checkpoint in `folder` or that itself, and opens it.
    fn convert(folder: &Path, input: &Path, dtype: DType, overrides: Vec<(Regex, DType)>, packed: bool) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("model.gguf");
        let options = Options { dtype, packed, overrides, rounding: Rounding::Nearest, ..Options::default() };
        let mut meta = |path: &Path| {
            let state = compute_meta_state(&Model::open(path)?, None, &GO_ON)?;
            Ok(state.expect("asked for when there are meta tokens").into_vectors())
        };
        convert(input, &file, &options, &mut meta, &mut |_| {}, &GO_ON).unwrap();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into(),
            model: Model::open(&file).unwrap(),
            golden: fs::read(folder.join("golden.safetensors")).unwrap(),
            folder: temporary,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.golden).unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors()
            .tensor(name)
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.tensors()
            .tensor(name)
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn prompts(&self) -> usize {
        (0..).take_while(|i| self.tensors().tensor(&format!("p{i}.ids")).is_ok()).count()
    }

    fn session(&self, chunk: usize, threads: usize, stored_meta_state: bool) -> Session<'_> {
        let threads = threads.try_into().ok();
        Session::new(&self.model, &SessionOptions { threads, ..options(chunk, stored_meta_state) }).unwrap()
    }

    /// A session on Metal's shaders, run by the emulator.
    fn emulated(&self, chunk: usize, stored_meta_state: bool) -> Session<'_> {
        let device = hymba_metal_emulator::device();
        let metal = Metal::new(device, self.model.weights(), self.model.config()).unwrap();
        let machine = Timed::new(Cpu::new(NonZeroUsize::MIN), Some(metal));
        Session::on(&self.model, &options(chunk, stored_meta_state), machine).unwrap()
    }

    /// Logits of all of a prompt's positions, row after row.
    fn prefill(&self, session: &mut Session<'_>, ids: &[u32]) -> Vec<f32> {
        let mut all = Vec::new();
        session
            .prefill_all(ids, &GO_ON, |_, logits| {
                all.extend_from_slice(logits);
                Ok(())
            })
            .unwrap();
        all
    }
}

fn options(chunk: usize, stored_meta_state: bool) -> SessionOptions {
    let context = Some(2048);
    SessionOptions { context, cache: CacheType::F32, stored_meta_state, chunk, ..SessionOptions::default() }
}

fn cases() -> Vec<Case> {
    let extra = env::var_os("HYMBA_GOLDEN_EXTRA").map(PathBuf::from);
    small_cases_and(extra)
}

fn small_cases_and(extra: Option<PathBuf>) -> Vec<Case> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")];
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

fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let bound = tolerance * want.iter().fold(1f32, |m, v| m.max(v.abs()));
    let worst =
        got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0f32, |m, d| if d.is_nan() { d } else { m.max(d) });
    assert!(worst <= bound, "{what}: off by {worst:e}, allowed {bound:e}");
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap() as u32
}

#[test]
fn prefill_and_decode_are_the_official_ones() {
    for case in cases() {
        // with and without the stored meta state, in one chunk and in several
        check_prompts(&case, usize::MAX, |i| {
            let (chunk, stored) = [(1024, true), (7, false), (64, true)][i % 3];
            case.session(chunk, 1 + i % 3, stored)
        });
    }
}

#[test]
fn prefill_and_decode_are_the_official_ones_on_emulated_metal() {
    for case in small_cases_and(None) {
        check_prompts(&case, common::much(usize::MAX, 1), |i| {
            let (chunk, stored) = [(1024, true), (9, false), (64, true)][i % 3];
            case.emulated(chunk, stored)
        });
    }
}

/// The first `most` prompts, each in the session that is made for its number.
fn check_prompts<'a>(case: &'a Case, most: usize, session: impl Fn(usize) -> Session<'a>) {
    let vocab = case.model.config().vocab;
    for i in 0..case.prompts().min(most) {
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

/// Metal's kernels round no activations: quantized weights give what the same values give as F32. `ids` are read as a
/// prompt, then some of them one at a time.
fn check_on_emulated_metal(what: &str, folder: &Path, quantized: &Case) {
    let decoded = Case::convert(folder, &quantized.file(), DType::F32, Vec::new(), false);
    let ids = &quantized.ids("p6.ids")[..17];
    let (mut metal, mut cpu) = (quantized.emulated(64, false), decoded.session(64, 1, false));
    let (mut got, mut want) = (quantized.prefill(&mut metal, ids), decoded.prefill(&mut cpu, ids));
    for id in &ids[..2] {
        got.extend_from_slice(metal.decode(*id).unwrap());
        want.extend_from_slice(cpu.decode(*id).unwrap());
    }
    close(what, &got, &want, TOLERANCE);
}

#[test]
fn quantized_weights_on_emulated_metal_are_the_decoded_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-a");
    for &dtype in common::much(&DType::ALL[..], &[DType::Q4_0]) {
        for packed in [true, false] {
            if dtype.is_quantized() || (dtype == DType::F16 && !packed) {
                let quantized = Case::convert(&folder, &folder, dtype, Vec::new(), packed);
                check_on_emulated_metal(&format!("{dtype}, packed {packed}"), &folder, &quantized);
            }
        }
    }
}

#[test]
fn recipes_on_emulated_metal_are_the_decoded_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-b");
    for &recipe in &Recipe::ALL[..common::much(Recipe::ALL.len(), 1)] {
        let (dtype, overrides) = mixture(&folder, recipe, false, &[]).unwrap();
        let mixed = Case::convert(&folder, &folder, dtype, overrides, true);
        check_on_emulated_metal(recipe.name(), &folder, &mixed);
    }
}

#[test]
fn layers_are_the_official_ones() {
    for case in cases() {
        let config = case.model.config();
        let ids = case.ids("trace.ids");
        let (hidden, inner) = (config.hidden, config.inner);
        let mut session = case.session(1024, 2, true);
        let mut seen = 0;
        session
            .prefill_observed(&ids, &GO_ON, &mut |view| {
                let views = [
                    ("hidden", view.hidden, hidden),
                    ("attn_out", view.attention, inner),
                    ("mamba_out", view.mamba, inner),
                ];
                for (name, memory, width) in views {
                    let name = format!("trace.layer{}.{name}", view.layer);
                    if case.tensors().tensor(&name).is_ok() {
                        let want = case.floats(&name);
                        let want = &want[config.meta_tokens * width..];
                        close(&format!("{}: {name}", case.name), &memory.f32()[..want.len()], want, TOLERANCE);
                        seen += 1;
                    }
                }
                Ok(())
            })
            .unwrap();
        assert!(seen >= 6, "{}: only {seen} tensors in the trace", case.name);

        let ids = case.ids("trace_long.ids");
        let want = case.floats("trace_long.hidden_last");
        let mut session = case.session(1024, 2, true);
        session
            .prefill_observed(&ids, &GO_ON, &mut |view| {
                let want = &want[view.layer * hidden..][..hidden];
                let got = &view.hidden.f32()[(ids.len() - 1) * hidden..][..hidden];
                close(&format!("{}: long prompt, layer {}", case.name, view.layer), got, want, TOLERANCE);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn threads_chunks_and_the_stored_meta_state_change_no_bit() {
    for case in cases() {
        let vocab = case.model.config().vocab;
        let longest = (0..case.prompts()).map(|i| case.ids(&format!("p{i}.ids"))).max_by_key(Vec::len).unwrap();
        let ids = &longest[..longest.len().min(300)];
        let mut first: Option<Vec<f32>> = None;
        for chunk in [1024, 64, 13, 1] {
            for (threads, stored) in [(1, true), (2, true), (8, false), (3, true), (4, false)] {
                let mut session = case.session(chunk, threads, stored);
                let mut logits = case.prefill(&mut session, ids);
                for id in &ids[..ids.len().min(5)] {
                    logits.extend_from_slice(session.decode(*id).unwrap());
                }
                // the same session, cleared, reads the same again
                session.clear().unwrap();
                assert_eq!(case.prefill(&mut session, ids), logits[..ids.len() * vocab]);
                let first = first.get_or_insert_with(|| logits.clone());
                assert!(*first == logits, "{}: chunks of {chunk}, {threads} threads, {stored}", case.name);
            }
        }
    }
}
