//! Values that are not finite are reported with their layer; values too large for the cache type switch the cache to F32.

mod common;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use common::{demo, fails, hymba, quantize, succeeds, text, write_with_metadata};
use hymba::{
    Error,
    engine::{Model, Session, SessionOptions, Timeline, generate::TokenModel},
    format::{Blob, CacheType, DType, gguf::Gguf},
    model::Config,
    quant::{Options, Rounding, TypePlan, convert},
};

static NO_CANCEL: AtomicBool = AtomicBool::new(false);
const META: &str = "hymba.meta_state.version";

/// Returns a golden checkpoint, converted.
fn converted(case: &str, dtype: DType, packed: bool, folder: &Path) -> PathBuf {
    let file = folder.join("model.gguf");
    let options = Options {
        types: TypePlan::Uniform(dtype),
        packed,
        rounding: Rounding::Nearest,
        force: true,
        ..Options::default()
    };
    convert(Path::new(&common::golden(case)), &file, &options, &mut |_| {}, &NO_CANCEL).unwrap();
    file
}

fn options(cache: CacheType) -> SessionOptions {
    SessionOptions { context: Some(64), cache, ..SessionOptions::default() }
}

/// NaN as the first value, or the first scale, of every tensor in turn.
#[test]
fn non_finite_values_are_reported_with_their_layer() {
    let folder = tempfile::tempdir().unwrap();
    for (case, dtype, packed) in [
        ("tiny-a", DType::F32, false),
        ("tiny-a", DType::Q8_0, true),
        ("tiny-a", DType::Q4_0, false),
        ("tiny-c", DType::Q8_0, false),
        ("tiny-c", DType::Q4_0, true),
    ] {
        let good = Gguf::open(&converted(case, dtype, packed, folder.path())).unwrap();
        let config = Config::from_metadata(&good.metadata, case).unwrap();
        for (i, tensor) in good.tensors.iter().enumerate() {
            let Some(layer) = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()) else {
                continue;
            };
            // the key norm of a layer that shares another layer's keys is not used
            let shares_kv = |l: &str| config.kv_source[l.parse::<usize>().unwrap()].to_string() != l;
            if tensor.name.contains("k_norm") && shares_kv(layer) {
                continue;
            }
            let mut bytes = tensor.data.to_vec();
            match tensor.dtype {
                DType::F32 => bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
                _ => bytes[..2].copy_from_slice(&0x7e00u16.to_le_bytes()),
            }
            let mut bad = good.clone();
            bad.tensors[i].data = Blob::from_vec(bytes);
            let file = folder.path().join("bad.gguf");
            write_with_metadata(&bad, good.metadata.clone(), &file);
            // vectors are checked when the file is opened
            let result = Model::open(&file).and_then(|model| {
                Session::new(&model, &options(CacheType::F16))?
                    .prefill(&[3, 1, 4, 1, 5], &NO_CANCEL)
                    .map(<[f32]>::to_vec)
            });
            let what = format!("{case}, {dtype}, {}", tensor.name);
            let error = result.map(|_| ()).expect_err(&what).to_string();
            assert!(error.contains("bad.gguf"), "{what}: {error}");
            let layer = format!("layer {layer} produced values that are not finite");
            assert!(error.contains(&layer) || error.contains(&tensor.name), "{what}: {error}");
        }
    }
}

/// Returns a model whose attention values are 2^20 times as large, which the norm after attention normalizes again.
fn with_large_values(case: &str, folder: &Path) -> PathBuf {
    let mut gguf = Gguf::open(&converted(case, DType::F32, false, folder)).unwrap();
    let model = Model::open(folder.join("model.gguf")).unwrap();
    let config = model.config();
    let (k, v) = config.kv_widths();
    for layer in (0..config.layers).filter(|&layer| config.is_producer(layer)) {
        let name = format!("blk.{layer}.in_proj.weight");
        let tensor = gguf.tensors.iter_mut().find(|t| t.name == name).unwrap();
        let mut bytes = tensor.data.to_vec();
        let rows = (config.hidden + k) * config.hidden..(config.hidden + k + v) * config.hidden;
        for value in bytes[4 * rows.start..4 * rows.end].as_chunks_mut::<4>().0 {
            *value = (f32::from_le_bytes(*value) * 1048576.0).to_le_bytes();
        }
        tensor.data = Blob::from_vec(bytes);
    }
    let (file, mut metadata) = (folder.join("large.gguf"), gguf.metadata.clone());
    metadata.remove(META);
    write_with_metadata(&gguf, metadata, &file);
    file
}

/// Values beyond F16 switch the cache to F32 automatically, at the meta tokens or during the text.
#[test]
fn values_beyond_f16_switch_the_cache_to_f32() {
    let folder = tempfile::tempdir().unwrap();
    for (case, meta_tokens) in [("tiny-a", true), ("tiny-c", false)] {
        let model = Model::open(with_large_values(case, folder.path())).unwrap();
        let run = |cache| {
            let mut timeline = Timeline::new(Session::new(&model, &options(cache)).unwrap(), 1 << 20);
            let mut logits = timeline.prefill(&[3, 1, 4, 1, 5, 9, 2, 6], &NO_CANCEL).unwrap().to_vec();
            logits.extend_from_slice(timeline.decode(5).unwrap());
            let reason = timeline.fallback_reason().map(ToString::to_string);
            (logits, reason, timeline.session().fallback().is_some(), timeline.session().cache_type())
        };
        let (want, ..) = run(CacheType::F32);
        let (got, reason, fallback, kind) = run(CacheType::F16);
        assert!(got == want, "{case}");
        assert!(fallback && kind == CacheType::F32 && reason.is_some() != meta_tokens, "{case}: {reason:?}");
        if !meta_tokens {
            let mut session = Session::new(&model, &options(CacheType::F16)).unwrap();
            let refused = session.prefill(&[3, 1], &NO_CANCEL);
            assert!(matches!(refused, Err(Error::CacheRange { layer: 0, cache: "f16" })));
        }
    }
}

/// The same for the demo and the commands.
#[test]
fn commands_switch_the_cache_for_large_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    quantize(&demo(), &path("plain.gguf"), &["--type", "q8_0", "--layout", "standard", "--rounding", "nearest"]);
    let mut gguf = Gguf::open(&path("plain.gguf")).unwrap();
    let model = Model::open(path("plain.gguf")).unwrap();
    let (config, (k, v)) = (model.config(), model.config().kv_widths());
    let row = DType::Q8_0.row_bytes(config.hidden).unwrap();
    let tensor = gguf.tensors.iter_mut().find(|t| t.name == "blk.0.in_proj.weight").unwrap();
    assert_eq!(tensor.dtype, DType::Q8_0);
    let mut bytes = tensor.data.to_vec();
    for block in bytes[(config.hidden + k) * row..(config.hidden + k + v) * row].chunks_mut(34) {
        let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32() * 262144.0;
        block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    }
    tensor.data = Blob::from_vec(bytes);
    let mut metadata = gguf.metadata.clone();
    metadata.remove(META);
    write_with_metadata(&gguf, metadata, &path("bare.gguf"));
    quantize(path("bare.gguf").to_str().unwrap(), &path("stored.gguf"), &["--type", "q8_0", "--layout", "packed"]);
    let story = |model: &str, more: &[&str]| {
        let mut command = hymba(["run", "--temp", "0", "-n", "16", "Once upon a time there was", "-m"]);
        let done = command.arg(path(model)).args(more).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        (text(&done.stdout), text(&done.stderr).contains("switched the KV cache to f32: layer 0"))
    };
    let (plain, is_switched) = story("plain.gguf", &[]);
    assert!(!is_switched);
    for model in ["bare.gguf", "stored.gguf"] {
        assert_eq!(story(model, &[]), (plain.clone(), true), "{model}");
        assert_eq!(story(model, &["--cache-type", "f32"]), (plain.clone(), false), "{model}");
    }
    // a saved text names the cache type that it needs
    let session = path("session");
    let mut run = hymba(["run", "-q", "-n", "2", "Once", "--session"]);
    succeeds(run.arg(&session).arg("-m").arg(path("bare.gguf")));
    let mut run = hymba(["run", "-q", "-n", "2", "--session"]);
    succeeds(run.arg(&session).arg("-m").arg(path("bare.gguf")));
    let mut run = hymba(["run", "-q", "-n", "2", "--session"]);
    fails(run.arg(&session).arg("-m").arg(path("plain.gguf")), 1, &["a different model"]);
}
