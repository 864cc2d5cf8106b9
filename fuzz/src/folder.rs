//! Hugging Face folders: configuration only, and whole conversions. The input is the files in the order of [`FILES`], with a
//! separator between them; empty ones do not exist.

use std::{fs, sync::atomic::AtomicBool};

use hymba::{
    engine::Model,
    import::Folder,
    model::{Activation, Config, tensors::specs},
    quant::{Options, Rounding, convert},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use tempfile::TempDir;

use super::{model, text};

const SEPARATOR: &[u8] = b"\n%%%%\n";
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "a.safetensors",
    "b.safetensors",
];

fn folder(data: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut rest = data;
    for name in FILES {
        let end = rest.windows(SEPARATOR.len()).position(|w| w == SEPARATOR).unwrap_or(rest.len());
        let single = name == "a.safetensors" && !folder.path().join("model.safetensors.index.json").exists();
        if end > 0 {
            let name = if single { "model.safetensors" } else { name };
            fs::write(folder.path().join(name), &rest[..end]).expect("room for it");
        }
        rest = rest.get(end + SEPARATOR.len()..).unwrap_or_default();
    }
    folder
}

/// Imports a folder without weights.
pub fn config(data: &[u8]) -> bool {
    let folder = folder(data);
    Folder::open(folder.path()).err().is_some_and(|e| e.to_string().contains("has neither model.safetensors"))
}

pub fn import(data: &[u8]) -> bool {
    let (folder, no_cancel) = (folder(data), AtomicBool::new(false));
    let output = folder.path().join("out.gguf");
    let options = Options { rounding: Rounding::Nearest, threads: 1.try_into().ok(), ..Options::default() };
    let converted = convert(folder.path(), &output, &options, &mut |_| (), &no_cancel).is_ok();
    assert_eq!(converted, output.exists());
    if converted {
        Model::open(&output).expect("the converted file is valid");
    }
    converted
}

fn config_json(c: &Config) -> String {
    let globals: Vec<usize> = (0..c.layers).filter(|&l| !c.windowed[l]).collect();
    json!({
        "model_type": "hymba", "vocab_size": c.vocab, "hidden_size": c.hidden, "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "mlp_hidden_act": if c.activation == Activation::Silu { "silu" } else { "relu2" }, "hidden_act": "silu",
        "rms_norm_eps": c.rms_eps, "max_position_embeddings": c.context_length, "orig_max_position_embeddings": 32,
        "rope": c.rope, "rope_theta": 10000.0, "rope_type": "ntk", "sliding_window": c.window,
        "global_attn_idx": globals, "kv_reuse_every_i_layer": -1, "kv_reuse_group": null, "kq_norm": "none",
        "kq_head_dim": -1, "attn_hidden_size": -1, "layer_type": ["h", "h"], "mamba_d_conv": c.conv_kernel,
        "mamba_d_state": c.state, "mamba_dt_rank": c.dt_rank, "mamba_expand": c.inner / c.hidden,
        "mamba_conv_bias": true, "mamba_proj_bias": false, "mamba_inner_layernorms": c.dt_b_c_norm, "num_experts": 1,
        "num_memory_tokens": c.meta_tokens, "memory_tokens_interspersed_every": 0, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0,
    })
    .to_string()
}

fn texts(c: &Config) -> [Vec<u8>; 4] {
    let generation = json!({"do_sample": true, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.1});
    let settings = json!({"add_bos_token": true, "chat_template": [{"name": "default", "template": "{{ messages }}"}]});
    [config_json(c), generation.to_string(), settings.to_string(), text::small()].map(String::into_bytes)
}

pub fn config_seeds() -> Vec<Vec<u8>> {
    let [config, generation, settings, _] = texts(&model::config(&mut model::Source(&[])));
    vec![[config, generation, settings].join(SEPARATOR)]
}

pub fn import_seeds() -> Vec<Vec<u8>> {
    let c = model::config(&mut model::Source(&[0, 0, 0, 0, 1])); // one layer
    let left_out = |name: &str| name == "lm_head.weight" || name.ends_with("_proj.bias");
    let tensors: Vec<_> = specs(&c).into_iter().filter(|spec| !left_out(&spec.official)).collect();
    let file = |parity: usize, every: usize| {
        let mine = tensors.iter().enumerate().filter(|(i, _)| i % every == parity).map(|(_, spec)| spec);
        let data: Vec<_> = mine.clone().map(|s| vec![0; 2 * s.shape.iter().product::<usize>()]).collect();
        let view = |data, shape: &[usize]| TensorView::new(Dtype::BF16, shape.to_vec(), data).expect("its size");
        let views: Vec<_> = mine.zip(&data).map(|(s, data)| (s.official.clone(), view(data, &s.shape))).collect();
        safetensors::serialize(views, None).expect("a file")
    };
    let shard = |i: usize| if i.is_multiple_of(2) { "a.safetensors" } else { "b.safetensors" };
    let map: serde_json::Map<_, _> =
        tensors.iter().enumerate().map(|(i, spec)| (spec.official.clone(), shard(i).into())).collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string().into_bytes();
    let [config, generation, settings, tokenizer] = texts(&c);
    vec![
        [config.clone(), generation, settings, tokenizer, index, file(0, 2), file(1, 2)].join(SEPARATOR),
        [config, vec![], vec![], vec![], vec![], file(0, 1)].join(SEPARATOR),
    ]
}
