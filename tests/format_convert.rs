//! Import and conversion of small Hugging Face folders: valid, unusual and invalid ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use hymba::{
    Error, Result,
    engine::{Model, Session, SessionOptions},
    format::{
        DType,
        codec::decode_row,
        gguf::{Gguf, Value},
    },
    forward::LayerView,
    quant::{Calibration, Event, Gptq, Options, Recipe, Rounding, Sample, Summary, TypePlan, convert},
    text::Tokenizer,
};
use regex::Regex;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value as Json, json};

/// A Hugging Face folder of a model with 3 layers; layer 2 shares layer 1's KV cache.
struct Fixture {
    dir: tempfile::TempDir,
    config: Json,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

const INNER: usize = 128;

impl Fixture {
    fn new() -> Self {
        let config = json!({
            "model_type": "hymba", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "mlp_hidden_act": "silu",
            "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "orig_max_position_embeddings": 64, "rope": true,
            "rope_theta": 10000.0, "rope_type": "ntk", "sliding_window": 16, "global_attn_idx": [0],
            "kv_reuse_group": [[1, 2]], "kv_reuse_every_i_layer": -1, "kq_norm": "none", "mamba_d_conv": 4,
            "mamba_d_state": 8, "mamba_dt_rank": "auto", "mamba_expand": 2, "mamba_conv_bias": true,
            "mamba_proj_bias": false, "mamba_inner_layernorms": true, "num_experts": 1, "num_memory_tokens": 4,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": null
        });
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![10, 64]),
            ("model.memory_tokens".into(), vec![4, 64]),
            ("model.final_layernorm.weight".into(), vec![64]),
        ];
        for layer in 0..3 {
            // q 64, k 32, v 64, u and gate 128 each; a consumer has no k and v.
            let in_rows = if layer == 2 { 320 } else { 416 };
            let list: [(&str, &[usize]); 19] = [
                ("input_layernorm.weight", &[64]),
                ("pre_moe_layernorm.weight", &[64]),
                ("mamba.in_proj.weight", &[in_rows, 64]),
                ("mamba.out_proj.weight", &[64, INNER]),
                ("mamba.conv1d.weight", &[INNER, 1, 4]),
                ("mamba.conv1d.bias", &[INNER]),
                ("mamba.x_proj.0.weight", &[20, INNER]),
                ("mamba.dt_proj.0.weight", &[INNER, 4]),
                ("mamba.dt_proj.0.bias", &[INNER]),
                ("mamba.A_log.0", &[INNER, 8]),
                ("mamba.D.0", &[INNER]),
                ("mamba.dt_layernorm.weight", &[4]),
                ("mamba.B_layernorm.weight", &[8]),
                ("mamba.C_layernorm.weight", &[8]),
                ("mamba.pre_avg_layernorm1.weight", &[INNER]),
                ("mamba.pre_avg_layernorm2.weight", &[INNER]),
                ("moe.experts.0.gate_proj.weight", &[96, 64]),
                ("moe.experts.0.up_proj.weight", &[96, 64]),
                ("moe.experts.0.down_proj.weight", &[64, 96]),
            ];
            shapes.extend(list.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape.to_vec())));
        }
        let tensors = shapes.into_iter().enumerate().map(|(i, (name, shape))| {
            let values = (0..shape.iter().product()).map(|j: usize| ((i * 31 + j * 17) % 97) as f32 / 97.0 - 0.5);
            (name, (shape, values.collect()))
        });
        Self { dir: tempfile::tempdir().unwrap(), config, tensors: tensors.collect() }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("tiny")
    }

    fn file(&self, name: &str, text: &str) {
        fs::create_dir_all(self.folder()).unwrap();
        fs::write(self.folder().join(name), text).unwrap();
    }

    fn save(&self) {
        self.file("config.json", &self.config.to_string());
        self.save_shard("model.safetensors", |_| true);
    }

    fn save_shard(&self, name: &str, mut belongs: impl FnMut(&str) -> bool) {
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .filter(|(name, _)| belongs(name))
            .map(|(name, (shape, values))| {
                (name.clone(), shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
        fs::create_dir_all(self.folder()).unwrap();
        fs::write(self.folder().join(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn save_tokenizer(&self) {
        let tokenizer = json!({
            "model": {
                "type": "BPE", "unk_token": "<unk>",
                "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "c": 3, "a": 4, "b": 5, "ab": 6, "aba": 7, "d": 8, "e": 9 },
                "merges": ["a b", "ab a"]
            },
            "added_tokens": [],
            "decoder": { "type": "Fuse" }
        });
        self.file("tokenizer.json", &tokenizer.to_string());
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.gguf")
    }

    fn convert(&self, dtype: DType) -> Result<Summary> {
        to(&self.folder(), &self.output(), dtype, &[])
    }

    #[track_caller]
    fn refused(&self, reason: &str) {
        let message = self.convert(DType::Q8_0).expect_err(reason).to_string();
        assert!(message.contains(reason), "{message:?} does not contain {reason:?}");
        let files: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["tiny"], "a file was left behind");
    }
}

/// Options for the same bytes as ggml's reference code.
fn plain() -> Options {
    Options { packed: false, rounding: Rounding::Nearest, ..Options::default() }
}

fn to(input: &Path, output: &Path, dtype: DType, overrides: &[(&str, DType)]) -> Result<Summary> {
    let overrides = overrides.iter().map(|(name, dtype)| (Regex::new(name).unwrap(), *dtype)).collect();
    let options =
        Options { types: TypePlan::Uniform(dtype), overrides, force: true, threads: 2.try_into().ok(), ..plain() };
    convert(input, output, &options, &mut |_| {}, &AtomicBool::new(false))
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).unwrap();
    let mut out = vec![f32::NAN; tensor.dims.iter().product()];
    decode_row(tensor.dtype, &tensor.data, &mut out);
    out
}

#[test]
fn converts_a_folder() {
    let fixture = Fixture::new();
    fixture.save();
    let summary = fixture.convert(DType::Q8_0).unwrap();
    let gguf = Gguf::open(&fixture.output()).unwrap();
    let meta = &gguf.metadata;
    assert_eq!(meta.string("general.name"), Some("tiny"));
    assert_eq!(meta.uint("hymba.ssm.time_step_rank"), Some(4));
    // 10000 · (2·128/64 − 1)^(32/30)
    assert!((meta.float("hymba.rope.freq_base").unwrap() - 32_279.69).abs() < 0.01);
    assert_eq!(meta.uints("hymba.attention.kv_source"), Some(&[0, 1, 1][..]));
    assert_eq!(meta.bools("hymba.attention.sliding_window_pattern"), Some(&[false, true, true][..]));
    assert_eq!(meta.uint("tokenizer.ggml.eos_token_id"), Some(2));
    assert_eq!(meta.get("tokenizer.ggml.padding_token_id"), None);
    assert_eq!(meta.uint("hymba.meta_state.version"), Some(1));

    let a = values(&gguf, "blk.1.ssm_a");
    for (a, log) in a.iter().zip(&fixture.tensors["model.layers.1.mamba.A_log.0"].1) {
        assert_eq!(*a, -f64::from(*log).exp() as f32);
    }
    let dtype = |name: &str| gguf.tensor(name).unwrap().dtype;
    assert_eq!(dtype("blk.2.in_proj.weight"), DType::Q8_0);
    assert_eq!(dtype("blk.0.ssm_dt.weight"), DType::F16);
    assert_eq!(gguf.tensor("blk.0.ssm_conv1d.weight").unwrap().dims, [INNER, 4]);
    assert!(values(&gguf, "meta_state.ssm.2").iter().any(|&v| v != 0.0));
    assert!(gguf.tensor("meta_state.k.2").is_none());
    assert!(summary.notes[0].contains("tokenizer.json"));
    assert_eq!(summary.bytes, gguf.bytes.len() as u64);
    assert_eq!(summary.types.iter().map(|t| t.1).sum::<usize>(), fixture.tensors.len());
}

/// The ids in config.json and in generation_config.json.
#[test]
fn all_end_tokens_are_kept() {
    let mut fixture = Fixture::new();
    fixture.config["eos_token_id"] = json!(2);
    fixture.save();
    fixture.save_tokenizer();
    let ends = |path: &Path| {
        let gguf = Gguf::open(path).unwrap();
        let eot = gguf.metadata.uint("tokenizer.ggml.eot_token_id");
        let tokenizer = Tokenizer::from_metadata(&gguf.metadata, "tiny").unwrap();
        assert_eq!(tokenizer.eos(), Some(2));
        (tokenizer.ends().to_vec(), eot, gguf.metadata.uints("hymba.eos_token_ids").map(<[u64]>::to_vec))
    };
    fixture.convert(DType::Q8_0).unwrap();
    assert_eq!(ends(&fixture.output()), (vec![2], None, None));
    let all = (vec![2, 3, 4], Some(3), Some(vec![2, 3, 4]));
    for (config, generation) in
        [(json!([2, 3, 2, 4]), json!(3)), (json!(2), json!([3, 2, 4])), (json!([2, 3]), json!([4]))]
    {
        fixture.config["eos_token_id"] = config;
        fixture.save();
        fixture.file("generation_config.json", &json!({ "eos_token_id": generation }).to_string());
        fixture.convert(DType::Q8_0).unwrap();
        assert_eq!(ends(&fixture.output()), all);
    }
    let again = fixture.dir.path().join("again.gguf");
    to(&fixture.output(), &again, DType::Q4_0, &[]).unwrap();
    assert_eq!(ends(&again), all);

    fixture.file("generation_config.json", &json!({ "eos_token_id": [4, 99, null, -1, "a"] }).to_string());
    let notes = fixture.convert(DType::Q8_0).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("eos token id 99")), "{notes:?}");
    assert_eq!(ends(&fixture.output()), all);
    fixture.config["eos_token_id"] = json!([2, 10]);
    fixture.save();
    assert!(fixture.convert(DType::Q8_0).unwrap_err().to_string().contains("eos token id 10"));
}

#[test]
fn requantizing_a_gguf_equals_converting_the_folder() {
    let fixture = Fixture::new();
    fixture.save();
    let path = |name: &str| fixture.dir.path().join(name);
    let read = |name: &str| fs::read(path(name)).unwrap();
    to(&fixture.folder(), &path("wide.gguf"), DType::F32, &[]).unwrap();
    for dtype in DType::ALL {
        to(&fixture.folder(), &path("a.gguf"), dtype, &[]).unwrap();
        to(&path("wide.gguf"), &path("b.gguf"), dtype, &[]).unwrap();
        let again = to(&path("a.gguf"), &path("c.gguf"), dtype, &[]).unwrap();
        assert!(read("a.gguf") == read("b.gguf"), "{dtype}: conversion from an F32 GGUF file differs");
        assert!(read("a.gguf") == read("c.gguf"), "{dtype}: requantization to the same type differs");
        assert!(again.notes.is_empty());
    }
    let summary = to(&path("a.gguf"), &path("b.gguf"), DType::Q8_0, &[]).unwrap();
    assert!(summary.notes[0].contains("requantized"), "{:?}", summary.notes);
}

#[test]
fn overrides_win_and_odd_rows_fall_back() {
    let fixture = Fixture::new();
    fixture.save();
    let overrides = [("ffn_", DType::Q8_0), ("ffn_up", DType::F32), ("ssm_dt", DType::Q4_0)];
    let summary = to(&fixture.folder(), &fixture.output(), DType::Q4_0, &overrides).unwrap();
    let gguf = Gguf::open(&fixture.output()).unwrap();
    let dtype = |name: &str| gguf.tensor(name).unwrap().dtype;
    assert_eq!(dtype("blk.0.ffn_gate.weight"), DType::Q8_0);
    assert_eq!(dtype("blk.0.ffn_up.weight"), DType::F32);
    assert_eq!(dtype("blk.0.out_proj.weight"), DType::Q4_0);
    assert_eq!(summary.fallbacks[0], ("blk.0.ssm_dt.weight".into(), DType::Q4_0, DType::F16));
    let message = to(&fixture.folder(), &fixture.output(), DType::Q4_0, &[("ffm", DType::F16)]).unwrap_err();
    assert!(message.to_string().contains("ffm=f16"));
}

#[test]
fn overrides_win_over_recipes() {
    let fixture = Fixture::new();
    fixture.save();
    let types = |pure| {
        let types = TypePlan::Recipe { recipe: Recipe::Q6, pure };
        let overrides = vec![(Regex::new("0.ffn_up").unwrap(), DType::BF16)];
        let options = Options { types, overrides, force: true, ..plain() };
        convert(&fixture.folder(), &fixture.output(), &options, &mut |_| {}, &AtomicBool::new(false)).unwrap();
        let gguf = Gguf::open(&fixture.output()).unwrap();
        assert_eq!(gguf.metadata.uint("general.file_type"), Some(DType::Q5_1.file_type().into()));
        ["0.ffn_up", "1.ffn_up", "1.out_proj"].map(|name| gguf.tensor(&format!("blk.{name}.weight")).unwrap().dtype)
    };
    assert_eq!(types(true), [DType::BF16, DType::Q5_1, DType::Q5_1]);
    let [fixed, mixed @ ..] = types(false);
    assert_eq!(fixed, DType::BF16);
    assert!(
        mixed.iter().all(|dtype| [DType::Mxfp4, DType::Q4_0, DType::Q5_0, DType::Q8_0].contains(dtype)),
        "{mixed:?}"
    );
}

#[test]
fn reads_shards_and_checks_their_index() {
    let fixture = Fixture::new();
    fixture.file("config.json", &fixture.config.to_string());
    let shard = |name: &str| if name.contains("layers.1") { "b.safetensors" } else { "a.safetensors" };
    fixture.save_shard("a.safetensors", |n| shard(n) == "a.safetensors");
    fixture.save_shard("b.safetensors", |n| shard(n) == "b.safetensors");
    let map: BTreeMap<&str, &str> = fixture.tensors.keys().map(|n| (n.as_str(), shard(n))).collect();
    let index = |map: &BTreeMap<&str, &str>| {
        fixture.file("model.safetensors.index.json", &json!({ "weight_map": map }).to_string());
    };
    let mut wrong = map.clone();
    wrong.insert("model.memory_tokens", "b.safetensors");
    index(&wrong);
    fixture.refused("lists `model.memory_tokens` in b.safetensors, which does not contain it");
    wrong.remove("model.memory_tokens");
    index(&wrong);
    fixture.refused("does not list `model.memory_tokens`");
    wrong.insert("model.memory_tokens", "../a.safetensors");
    index(&wrong);
    fixture.refused("not a plain file name");
    wrong.insert("model.memory_tokens", "c.safetensors");
    index(&wrong);
    fixture.refused("c.safetensors, which is missing");
    index(&map);
    fixture.save_shard("b.safetensors", |n| shard(n) == "b.safetensors" || n == "model.memory_tokens");
    fixture.refused("another shard also contains");
    fixture.save_shard("b.safetensors", |n| shard(n) == "b.safetensors");
    fixture.convert(DType::Q4_0).unwrap();
}

#[test]
fn refuses_unsupported_configs() {
    for (key, value, reason) in [
        ("model_type", json!("llama"), "`llama`"),
        ("num_experts", json!(4), "num_experts 4"),
        ("memory_tokens_interspersed_every", json!(64), "memory_tokens_interspersed_every 64"),
        ("rope_type", json!("dynamic_ntk"), "rope_type `dynamic_ntk`"),
        ("kq_norm", json!("perhead-rms"), "kq_norm `perhead-rms`"),
        ("mlp_hidden_act", json!("gelu"), "`gelu`"),
        ("orig_max_position_embeddings", json!(null), "orig_max_position_embeddings"),
        ("global_attn_idx", json!(null), "global_attn_idx"),
        ("global_attn_idx", json!([0, 3]), "names layer 3"),
        ("global_attn_idx", json!([0, 1]), "only one of them is windowed"),
        ("kv_reuse_group", json!([[1, 2], [2]]), "twice"),
        ("num_hidden_layers", json!(u64::MAX), "layers"),
        ("hidden_size", json!(null), "invalid type: null"),
        ("hidden_size", json!(63), "divisible"),
        ("vocab_size", json!(1u64 << 40), "which is too large"),
        ("max_position_embeddings", json!((1u64 << 24) + 1), "which is too large"),
        ("eos_token_id", json!(10), "eos token id 10"),
        ("intermediate_size", json!(128), "[96, 64], but config.json requires [128, 64]"),
        ("num_memory_tokens", json!(0), "`model.memory_tokens`"),
        ("mamba_proj_bias", json!(true), "lacks the tensor `model.layers.0.mamba.in_proj.bias`"),
        ("tie_word_embeddings", json!(false), "lacks the tensor `lm_head.weight`"),
    ] {
        let mut fixture = Fixture::new();
        fixture.config[key] = value;
        fixture.save();
        fixture.refused(reason);
    }
}

#[test]
fn refuses_broken_folders() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.folder()).unwrap();
    fixture.refused("has no config.json");
    fixture.file("config.json", "{");
    fixture.refused("is not JSON: EOF");
    fs::write(fixture.folder().join("config.json"), [0xff, 0xfe]).unwrap();
    fixture.refused("UTF-8");
    fixture.file("config.json", &fixture.config.to_string());
    fixture.refused("model.safetensors.index.json");
    fixture.file("model.safetensors", "version https://git-lfs.github.com/spec/v1");
    fixture.refused("LFS");
    fs::write(fixture.folder().join("model.safetensors"), [0xff; 64]).unwrap();
    fixture.refused("not a safetensors file");
    fixture.save();
    let path = fixture.folder().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    fixture.refused("truncated");
    fixture.save();
    fixture.file("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 10}, "merges": []}}"#);
    fixture.refused("the id 10");
}

#[test]
fn refuses_nan_and_f16_overflow() {
    let mut fixture = Fixture::new();
    fixture.tensors.get_mut("model.layers.0.moe.experts.0.up_proj.weight").unwrap().1[64 * 3] = f32::NAN;
    fixture.save();
    fixture.refused(
        "`blk.0.ffn_up.weight` (model.layers.0.moe.experts.0.up_proj.weight) contains NaN or infinity in row 3",
    );
    let mut fixture = Fixture::new();
    fixture.tensors.get_mut("model.memory_tokens").unwrap().1[0] = 1e6;
    fixture.save();
    fixture.refused("too large for f16");
}

#[test]
fn keeps_the_tokenizer_and_the_sampling_settings() {
    let fixture = Fixture::new();
    fixture.save();
    let tokenizer = json!({
        "model": {
            "type": "BPE", "unk_token": "<unk>",
            "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "a": 4, "b": 5, "ab": 6, "aba": 7 },
            "merges": ["a b", ["ab", "a"]]
        },
        "added_tokens": [
            { "id": 0, "content": "<unk>", "special": true },
            { "id": 1, "content": "<s>", "special": true },
            { "id": 8, "content": "hello", "special": false }
        ]
    });
    fixture.file("tokenizer.json", &tokenizer.to_string());
    let templates = json!([{ "name": "tools", "template": "no" }, { "name": "default", "template": "yes" }]);
    let settings = json!({ "add_bos_token": true, "chat_template": templates });
    fixture.file("tokenizer_config.json", &settings.to_string());
    fixture.file("generation_config.json", r#"{"do_sample": true, "temperature": 0.5, "top_k": 40}"#);
    fixture.file("README.md", "---\nlicense: other\nlicense_name: some-license\n---\n# Tiny\nlicense: none\n");
    assert!(fixture.convert(DType::Q8_0).unwrap().notes.is_empty());
    let meta = Gguf::open(&fixture.output()).unwrap().metadata;
    let key = |key: &str| meta.get(key).unwrap().clone();
    assert_eq!(key("tokenizer.huggingface.json"), Value::String(tokenizer.to_string()));
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "aba", "hello", "[PAD9]"];
    assert_eq!(key("tokenizer.ggml.tokens"), Value::Strings(tokens.into_iter().collect()));
    assert_eq!(key("tokenizer.ggml.token_type"), Value::Ints(vec![2, 3, 1, 6, 1, 1, 1, 1, 4, 5]));
    let scores = vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0];
    assert_eq!(key("tokenizer.ggml.scores"), Value::Floats(scores));
    assert_eq!(key("tokenizer.ggml.merges"), Value::Strings(["a b", "ab a"].into_iter().collect()));
    assert_eq!(key("tokenizer.ggml.unknown_token_id"), Value::Uint(0));
    assert_eq!(key("tokenizer.ggml.add_bos_token"), Value::Bool(true));
    assert_eq!(key("tokenizer.chat_template"), Value::String("yes".into()));
    assert_eq!(key("general.sampling.temp"), Value::Float(0.5));
    assert_eq!(key("general.sampling.top_k"), Value::Int(40));
    assert_eq!(key("general.license"), Value::String("some-license".into()));

    fixture.file("generation_config.json", r#"{"do_sample": false, "temperature": 0.5}"#);
    fixture.file("chat_template.jinja", "newer");
    fixture.convert(DType::Q8_0).unwrap();
    let meta = Gguf::open(&fixture.output()).unwrap().metadata;
    assert_eq!(meta.get("general.sampling.temp"), None);
    assert_eq!(meta.string("tokenizer.chat_template"), Some("newer"));
}

#[test]
fn a_convolution_of_one_tap_has_no_state() {
    let mut fixture = Fixture::new();
    fixture.config["mamba_d_conv"] = json!(1);
    for layer in 0..3 {
        let (shape, values) = fixture.tensors.get_mut(&format!("model.layers.{layer}.mamba.conv1d.weight")).unwrap();
        *shape = vec![INNER, 1, 1];
        values.truncate(INNER);
    }
    fixture.save();
    fixture.convert(DType::F32).unwrap();
    let model = Model::open(fixture.output()).unwrap();
    let logits = |stored_meta_state| {
        let options = SessionOptions { stored_meta_state, ..SessionOptions::default() };
        let mut session = Session::new(&model, &options).unwrap();
        session.prefill(&[3, 1, 4], &AtomicBool::new(false)).unwrap();
        session.decode(5).unwrap().to_vec()
    };
    assert_eq!(logits(true), logits(false));
}

/// Inputs are not overwritten under any name, and two outputs must be different files.
#[test]
fn inputs_are_never_overwritten() {
    let fixture = Fixture::new();
    fixture.save();
    fixture.save_tokenizer();
    fixture.convert(DType::F32).unwrap();
    let (folder, file) = (fixture.folder(), fixture.output());
    let text = fixture.dir.path().join("text");
    fs::write(&text, "aba".repeat(3000)).unwrap();
    let Calibration::Text(sample) = sample(24) else { unreachable!() };
    let sample = Sample { name: text.display().to_string(), ..sample };
    let refused = |input: &Path, output: &Path, moments: Option<&Path>, why: &str| {
        let (calibration, save_moments) = (Some(Calibration::Text(sample.clone())), moments.map(Into::into));
        let options = Options { force: true, calibration, save_moments, ..Options::default() };
        let before = [output, moments.unwrap_or(output)].map(|path| fs::read(path).ok());
        let done = convert(input, output, &options, &mut |_| {}, &AtomicBool::new(false));
        let message = done.unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} does not contain {why:?}");
        assert_eq!(before, [output, moments.unwrap_or(output)].map(|path| fs::read(path).ok()));
    };
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        refused(&folder, &folder.join(name), None, "both input and output");
    }
    refused(&file, &file, None, "both input and output");
    refused(&folder, &text, None, "both input and output");
    let inside = folder.join("earlier.gguf");
    fs::write(&inside, "earlier").unwrap();
    to(&folder, &inside, DType::Q8_0, &[]).unwrap();
    let other = fixture.dir.path().join("other.gguf");
    refused(&file, &other, Some(&file), "both input and output");
    refused(&file, &other, Some(&folder.join("../other.gguf")), "named for two outputs");
    #[cfg(unix)]
    {
        let link = fixture.dir.path().join("link");
        std::os::unix::fs::symlink(folder.join("model.safetensors"), &link).unwrap();
        refused(&folder, &link, None, "both input and output");
    }
}

#[test]
fn leaves_no_file_when_cancelled_or_failed() {
    let fixture = Fixture::new();
    fixture.save();
    let options = Options { packed: true, ..plain() };
    let run = |fixture: &Fixture, cancelled| {
        convert(&fixture.folder(), &fixture.output(), &options, &mut |_| {}, &AtomicBool::new(cancelled))
    };
    assert!(matches!(run(&fixture, true), Err(Error::Cancelled)));
    // All weights are finite, but the state after the meta tokens is not.
    let mut infinite = Fixture::new();
    let (_, values) = infinite.tensors.get_mut("model.layers.1.mamba.in_proj.weight").unwrap();
    values.fill(3e38);
    infinite.save();
    let options = Options { types: TypePlan::Uniform(DType::F32), ..plain() };
    let failed = convert(&infinite.folder(), &infinite.output(), &options, &mut |_| {}, &AtomicBool::new(false));
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("tiny: layer 1 "), "{error}");
    for fixture in [&fixture, &infinite] {
        assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 1);
    }
    run(&fixture, false).unwrap();
    assert!(matches!(run(&fixture, false), Err(Error::Exists(_))));
}

/// Invalid optional files do not fail a conversion; each is reported in a note.
#[test]
fn invalid_optional_files_are_ignored_with_a_note() {
    let mut fixture = Fixture::new();
    fixture.config["unused"] = json!("HERE");
    fixture.save();
    fixture.save_tokenizer();
    let config = fixture.config.to_string().replace("\"HERE\"", "[Infinity, NaN, -Infinity]");
    fixture.file("config.json", &config);
    let convert = |fixture: &Fixture| fixture.convert(DType::F32).unwrap().notes.join("\n");
    assert_eq!(convert(&fixture), "");
    for (text, note, kept) in [
        (r#"{"do_sample": true, "temperature": 0.5, "top_k": -1}"#, "", 2),
        (r#"{"temperature": 0.5, "top_p": 1.5}"#, "top_p 1.5 must be from 0 to 1; ignored", 1),
        (r#"{"temperature": 0.5, "top_p": NaN, "min_p": "low"}"#, "top_p \"NaN\" is not a number", 1),
        (r#"{"temperature": -1, "top_k": 1.5}"#, "top_k 1.5 must be a non-negative integer, or -1", 0),
        (r#"{"temperature": 0.5, "#, "generation_config.json: is not JSON: EOF", 0),
        (r#"{"do_sample": "maybe"}"#, "`do_sample`: invalid type", 0),
    ] {
        fixture.file("generation_config.json", text);
        let notes = convert(&fixture);
        assert!(notes.contains(note) && notes.is_empty() == note.is_empty(), "{text}: {notes}");
        let meta = Gguf::open(&fixture.output()).unwrap().metadata;
        assert_eq!(meta.iter().filter(|(key, _)| key.starts_with("general.sampling.")).count(), kept, "{text}");
        Model::open(fixture.output()).unwrap().sampling().unwrap();
    }
    fixture.file("generation_config.json", "{}");
    fixture.file("tokenizer_config.json", r#"{"add_bos_token": "yes"}"#);
    fs::write(fixture.folder().join("chat_template.jinja"), [0xff]).unwrap();
    let notes = convert(&fixture);
    assert!(notes.contains("tokenizer_config.json") && notes.contains("`add_bos_token`"), "{notes}");
    assert!(notes.contains("chat_template.jinja: is not UTF-8 text"), "{notes}");
}

#[cfg(unix)]
#[test]
fn missing_files_of_a_download_are_named() {
    let fixture = Fixture::new();
    fixture.file("config.json", &fixture.config.to_string());
    fixture.save_shard("model-00002-of-00002.safetensors", |_| true);
    fixture.save_shard("model-00001-of-00002.safetensors", |_| false);
    fixture
        .refused("has model-00001-of-00002.safetensors, but not the index of all shards, model.safetensors.index.json");
    for name in ["config.json", "model.safetensors"] {
        fixture.save();
        let path = fixture.folder().join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("../../blobs/4f2a", &path).unwrap();
        fixture.refused(&format!("{name}: is a link to ../../blobs/4f2a, which does not exist; download it again"));
        fs::remove_file(&path).unwrap();
    }
}

/// A checkpoint that is overwritten during the conversion, even with the same bytes, is an error.
#[test]
fn a_source_modified_during_conversion_is_an_error() {
    let fixture = Fixture::new();
    fixture.save();
    let gguf = fixture.dir.path().join("tiny/from.gguf");
    to(&fixture.folder(), &gguf, DType::F32, &[]).unwrap();
    for (input, file) in [(fixture.folder(), fixture.folder().join("model.safetensors")), (gguf.clone(), gguf)] {
        let mut changed = false;
        let mut change = |event: Event| {
            if matches!(event, Event::Converted { .. }) && !std::mem::replace(&mut changed, true) {
                std::thread::sleep(std::time::Duration::from_millis(20)); // a tick of the file system's clock
                fs::write(&file, fs::read(&file).unwrap()).unwrap();
            }
        };
        let result = convert(&input, &fixture.output(), &plain(), &mut change, &AtomicBool::new(false));
        let error = result.unwrap_err().to_string();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(error.contains(&format!("{name}: was shortened or overwritten")), "{error}");
        assert!(!fixture.output().exists());
    }
}

#[test]
fn ignores_a_tied_head_and_keeps_an_untied_one() {
    let mut fixture = Fixture::new();
    let head = fixture.tensors["model.embed_tokens.weight"].clone();
    fixture.tensors.insert("lm_head.weight".into(), head);
    fixture.save();
    let summary = fixture.convert(DType::F16).unwrap();
    assert!(summary.notes.iter().any(|n| n.contains("lm_head.weight")));
    assert!(Gguf::open(&fixture.output()).unwrap().tensor("output.weight").is_none());
    fixture.config["tie_word_embeddings"] = json!(false);
    fixture.save();
    fixture.convert(DType::F16).unwrap();
    assert!(Gguf::open(&fixture.output()).unwrap().tensor("output.weight").is_some());
}

fn calibrated(fixture: &Fixture, output: &str, options: &Options) -> Result<Vec<u8>> {
    let output = fixture.dir.path().join(output);
    let (mut expected, mut done) = (0, 0);
    let mut progress = |event: Event| match event {
        Event::Calibrate { steps } => expected = steps,
        Event::Calibrated { steps, .. } => done += steps,
        _ => (),
    };
    convert(&fixture.folder(), &output, options, &mut progress, &AtomicBool::new(false))?;
    assert_eq!(done, expected, "steps of calibration");
    Ok(fs::read(output).unwrap())
}

fn sample(context: usize) -> Calibration {
    let text: String = (0..400u32).map(|i| ["a", "b", "c", "d", "e"][(i * i / 3 % 5) as usize]).collect();
    Calibration::Text(Sample { text, name: "letters".into(), tokens: 240, context })
}

/// Calibration processes the texts layer by layer, from the safetensors; its moments match those of a session.
#[test]
fn calibration_moments_match_a_session() {
    let fixture = Fixture::new();
    fixture.save();
    fixture.save_tokenizer();
    let path = fixture.dir.path().join("moments.gguf");
    let options = Options {
        types: TypePlan::Uniform(DType::F32),
        calibration: Some(sample(24)),
        save_moments: Some(path.clone()),
        ..Options::default()
    };
    calibrated(&fixture, "f32.gguf", &options).unwrap();

    let model = Model::open(fixture.dir.path().join("f32.gguf")).unwrap();
    let tokenizer = Tokenizer::from_metadata(model.metadata(), "the fixture").unwrap();
    let Calibration::Text(sample) = sample(24) else { unreachable!() };
    let ids = tokenizer.encode(&sample.text, false).unwrap();
    let runs: Vec<&[u32]> = ids.chunks_exact(23).collect();
    let wanted = runs.len().min(10);
    let gains = &model.weights().output_norm;
    let mut squares = vec![0.0; 64];
    let session_options = SessionOptions { stored_meta_state: false, ..SessionOptions::default() };
    let mut session = Session::new(&model, &session_options).unwrap();
    for i in 0..wanted {
        let ids = [&[1], runs[i * runs.len() / wanted]].concat();
        session.clear().unwrap();
        let mut last = Vec::new();
        let observe = &mut |view: LayerView<'_>| {
            last = view.hidden.f32()[..ids.len() * 64].to_vec();
            Ok(())
        };
        session.prefill_observed(&ids, &AtomicBool::new(false), observe).unwrap();
        for row in last.chunks(64) {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / 64.0;
            for ((sum, v), gain) in squares.iter_mut().zip(row).zip(gains.iter()) {
                *sum += v * v * gain * gain / (mean + 1e-6);
            }
        }
    }
    let moments = Gguf::open(&path).unwrap();
    assert_eq!(values(&moments, "token_embd.weight.counts"), [24.0 * wanted as f32]);
    assert_eq!(moments.metadata.uint("imatrix.chunk_count"), Some(wanted as u64));
    for (got, want) in values(&moments, "token_embd.weight.in_sum2").iter().zip(&squares) {
        assert!((got / want - 1.0).abs() < 5e-3, "{got} is not {want}");
    }
    // The meta tokens are processed once.
    let inputs = 24.0 * wanted as f32 + 4.0;
    assert_eq!(values(&moments, "blk.2.ffn_gate.weight.counts"), [inputs]);
    assert_eq!(values(&moments, "blk.1.ssm_x.weight.in_sum2").len(), INNER);
}

#[test]
fn calibration_from_text_equals_calibration_from_its_file() {
    let fixture = Fixture::new();
    fixture.save();
    fixture.save_tokenizer();
    let path = fixture.dir.path().join("moments.gguf");
    let base = || Options { force: true, ..Options::default() };
    let alone = calibrated(&fixture, "a.gguf", &base()).unwrap();
    let text = Options { calibration: Some(sample(24)), save_moments: Some(path.clone()), ..base() };
    let measured = calibrated(&fixture, "b.gguf", &text).unwrap();
    let loaded = Options { calibration: Some(Calibration::File(path.clone())), ..base() };
    assert!(measured == calibrated(&fixture, "c.gguf", &loaded).unwrap());
    assert!(measured != alone && measured.len() == alone.len());
    let rounding = Rounding::Gptq(Gptq::default());
    let gptq = Options { calibration: Some(sample(24)), rounding, ..base() };
    let compensated = calibrated(&fixture, "d.gguf", &gptq).unwrap();
    assert!(compensated != measured && compensated.len() == measured.len());
    // The same on any number of threads.
    let one = Options { threads: 1.try_into().ok(), calibration: Some(sample(24)), rounding, ..base() };
    assert!(compensated == calibrated(&fixture, "e.gguf", &one).unwrap());

    let refused = |options: &Options, why: &str| {
        let message = calibrated(&fixture, "f.gguf", options).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} does not contain {why:?}");
        assert!(!fixture.dir.path().join("f.gguf").exists());
    };
    refused(&Options { calibration: Some(sample(1000)), ..base() }, "calibration needs at least 999");
    refused(&Options { calibration: Some(Calibration::File("a.gguf".into())), ..base() }, "a.gguf");
    let model = Some(Calibration::File(fixture.dir.path().join("a.gguf")));
    refused(&Options { calibration: model, ..base() }, "is not a calibration");
    let mut other = Fixture::new();
    other.tensors.retain(|name, _| !name.contains(".layers.2."));
    other.config["num_hidden_layers"] = json!(2);
    other.config["kv_reuse_group"] = json!([]);
    other.save();
    let message = calibrated(&other, "f.gguf", &loaded).unwrap_err().to_string();
    assert!(message.contains("for another model"), "{message}");
}
