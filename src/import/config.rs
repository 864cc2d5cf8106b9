//! config.json: the keys that Hymba's forward pass needs.

use std::{collections::HashSet, path::Path};

use serde::Deserialize;

use super::read::parse;
use crate::{
    Error, Result,
    format::gguf::{ENDS, Metadata, Value},
    limits,
    model::{Activation, Config, tensors::Spec},
};

/// The relevant keys, named as in the official configuration class. Keys that are not an `Option` are required.
#[derive(Deserialize)]
pub(super) struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    mlp_hidden_act: String,
    hidden_act: Option<String>,
    rms_norm_eps: f32,
    max_position_embeddings: usize,
    pub(super) orig_max_position_embeddings: Option<usize>,
    rope: bool,
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    sliding_window: Option<usize>,
    global_attn_idx: Option<Vec<usize>>,
    kv_reuse_every_i_layer: Option<i64>,
    kv_reuse_group: Option<Vec<Vec<usize>>>,
    kq_norm: Option<String>,
    kq_head_dim: Option<i64>,
    attn_hidden_size: Option<i64>,
    layer_type: Option<Vec<String>>,
    mamba_d_conv: usize,
    mamba_d_state: usize,
    mamba_dt_rank: Rank,
    mamba_expand: usize,
    mamba_conv_bias: bool,
    mamba_proj_bias: bool,
    mamba_inner_layernorms: bool,
    num_experts: Option<u64>,
    num_memory_tokens: Option<usize>,
    memory_tokens_interspersed_every: Option<i64>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
    pad_token_id: Option<Ids>,
}

/// Parsed first, since the files of other models lack required keys, and an error about those would be less clear.
#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Rank {
    Number(usize),
    Word(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
}

/// Checks that the `text` of a config.json describes a supported model; `path` names it in messages.
pub fn check_config(path: &Path, text: &str) -> Result<()> {
    Raw::read(path, text)?.config(&path.display().to_string()).map(drop)
}

impl Raw {
    /// Reads the `text` of the file at `path`.
    pub(super) fn read(path: &Path, text: &str) -> Result<Self> {
        let Kind { model_type } = parse(path, text)?;
        if model_type != "hymba" {
            let problem = format!("describes a model of type `{model_type}`; only `hymba` is supported");
            return Err(Error::format(path.display().to_string(), problem));
        }
        parse(path, text)
    }

    /// Returns the configuration, or why the model is not supported; `file` is the name for messages.
    pub(super) fn config(&self, file: &str) -> Result<Config> {
        let bad = |problem: String| Error::format(file, problem);
        if let Some(problem) = self.unsupported() {
            return Err(bad(format!("requires {problem}, which is not supported")));
        }
        let (hidden, heads, layers) = (self.hidden_size, self.num_attention_heads, self.num_hidden_layers);
        if !(1..=limits::LAYERS).contains(&layers) {
            return Err(bad(format!("has {layers} layers; 1 to {} are supported", limits::LAYERS)));
        }
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(bad(format!("has hidden_size {hidden}, which is not divisible by {heads} heads")));
        }
        let inner = hidden
            .checked_mul(self.mamba_expand)
            .ok_or_else(|| bad(format!("has an impossible mamba_expand of {}", self.mamba_expand)))?;
        let dt_rank = match &self.mamba_dt_rank {
            Rank::Number(rank) => *rank,
            Rank::Word(word) if word == "auto" => hidden.div_ceil(16),
            Rank::Word(word) => return Err(bad(format!("has mamba_dt_rank `{word}`; it must be a number or `auto`"))),
        };
        let activation = &self.mlp_hidden_act;
        let activation = Activation::from_name(activation)
            .ok_or_else(|| bad(format!("has mlp_hidden_act `{activation}`; supported: silu and relu2")))?;
        Ok(Config {
            vocab: self.vocab_size,
            context_length: self.max_position_embeddings,
            hidden,
            layers,
            ffn: self.intermediate_size,
            activation,
            heads,
            kv_heads: self.num_key_value_heads,
            key_dim: hidden / heads,
            value_dim: inner / heads,
            rms_eps: self.rms_norm_eps,
            window: self.sliding_window,
            windowed: self.windowed().map_err(bad)?,
            kv_source: self.kv_source().map_err(bad)?,
            qk_norm: self.kq_norm.as_deref() == Some("rms"),
            meta_tokens: self.num_memory_tokens.unwrap_or(0),
            rope: self.rope,
            rope_base: self.rope_base().map_err(bad)?,
            conv_kernel: self.mamba_d_conv,
            inner,
            state: self.mamba_d_state,
            dt_rank,
            dt_b_c_norm: self.mamba_inner_layernorms,
        })
    }

    /// Returns a feature that is not supported, if the model needs one.
    fn unsupported(&self) -> Option<String> {
        let Self { hidden_size, num_attention_heads, .. } = self;
        let named = |key: &str, value: &Option<String>, known: &[&str]| {
            value.as_deref().filter(|v| !known.contains(v)).map(|v| format!("{key} `{v}`"))
        };
        let implied = |key: &str, value: Option<i64>, implied: usize| {
            value.filter(|&v| v > 0 && v as u64 != implied as u64).map(|v| format!("{key} {v}"))
        };
        if let Some(experts) = self.num_experts.filter(|&n| n > 1) {
            return Some(format!("num_experts {experts}"));
        }
        if let Some(every) = self.memory_tokens_interspersed_every.filter(|&n| n > 0) {
            return Some(format!("memory_tokens_interspersed_every {every}"));
        }
        if let Some(other) = self.layer_type.iter().flatten().find(|t| *t != "h") {
            return Some(format!("layer_type `{other}`"));
        }
        let rope_type = if self.rope { named("rope_type", &self.rope_type, &["default", "ntk"]) } else { None };
        rope_type
            .or_else(|| named("kq_norm", &self.kq_norm, &["none", "rms"]))
            .or_else(|| named("hidden_act", &self.hidden_act, &["silu"]))
            .or_else(|| implied("kq_head_dim", self.kq_head_dim, hidden_size / (*num_attention_heads).max(1)))
            .or_else(|| implied("attn_hidden_size", self.attn_hidden_size, *hidden_size))
    }

    fn windowed(&self) -> std::result::Result<Vec<bool>, String> {
        let layers = self.num_hidden_layers;
        let global = match (&self.global_attn_idx, self.sliding_window) {
            (Some(global), Some(_)) => global,
            (None, Some(_)) => return Err("has a sliding_window, but no global_attn_idx".into()),
            (_, None) => return Ok(vec![false; layers]),
        };
        if let Some(layer) = global.iter().find(|&&l| l >= layers) {
            return Err(format!("names layer {layer} in global_attn_idx, but has {layers} layers"));
        }
        Ok((0..layers).map(|layer| !global.contains(&layer)).collect())
    }

    fn kv_source(&self) -> std::result::Result<Vec<usize>, String> {
        let layers = self.num_hidden_layers;
        let mut source: Vec<usize> = (0..layers).collect();
        match (&self.kv_reuse_group, self.kv_reuse_every_i_layer) {
            (Some(groups), _) => {
                let mut grouped = vec![false; layers];
                for group in groups {
                    for &layer in group {
                        let Some(seen) = grouped.get_mut(layer) else {
                            return Err(format!("names layer {layer} in kv_reuse_group, but has {layers} layers"));
                        };
                        if std::mem::replace(seen, true) {
                            return Err(format!("names layer {layer} twice in kv_reuse_group"));
                        }
                        source[layer] = group[0];
                    }
                }
            }
            (None, Some(every)) if every > 0 => {
                let every = usize::try_from(every).unwrap_or(usize::MAX);
                source.iter_mut().for_each(|l| *l -= *l % every);
            }
            _ => {}
        }
        Ok(source)
    }

    /// Returns RoPE's base; with `ntk` it is scaled so that the longest text has the rotation range of the original
    /// context.
    fn rope_base(&self) -> std::result::Result<f32, String> {
        let theta = match self.rope_theta {
            Some(theta) => theta,
            None if self.rope => return Err("has no rope_theta".into()),
            None => 10000.0,
        };
        if !self.rope || self.rope_type.as_deref() != Some("ntk") {
            return Ok(theta as f32);
        }
        let original = self.orig_max_position_embeddings.filter(|&n| n > 0);
        let original = original.ok_or("has rope_type `ntk`, but no orig_max_position_embeddings")? as f64;
        let width = self.hidden_size as f64 / self.num_attention_heads as f64;
        let scale = 2.0 * self.max_position_embeddings as f64 / original - 1.0;
        Ok((theta * scale.powf(width / (width - 2.0))) as f32)
    }

    /// Adds special token ids under ggml's keys; of a list, the first one. If several tokens end a text, all of them,
    /// with `more_ends`, are listed under a separate key; the second one is also stored as the end of turn, for readers
    /// that support two.
    pub(super) fn special_ids(&self, file: &str, more_ends: &[u64], metadata: &mut Metadata) -> Result<()> {
        for (name, ids) in [("bos", &self.bos_token_id), ("padding", &self.pad_token_id)] {
            if let Some(&id) = self.known_ids(file, name, ids)?.first() {
                metadata.set(format!("tokenizer.ggml.{name}_token_id"), Value::Uint(id));
            }
        }
        let mut ends = self.known_ids(file, "eos", &self.eos_token_id)?;
        ends.extend(more_ends);
        let mut seen = HashSet::new();
        ends.retain(|&id| seen.insert(id));
        if ends.len() > limits::ENDS {
            let (count, limit) = (ends.len(), limits::ENDS);
            return Err(Error::format(file, format!("has {count} tokens that end a text; the limit is {limit}")));
        }
        for (name, &id) in ["eos", "eot"].iter().zip(&ends) {
            metadata.set(format!("tokenizer.ggml.{name}_token_id"), Value::Uint(id));
        }
        if ends.len() > 1 {
            metadata.set(ENDS, Value::Uints(ends));
        }
        Ok(())
    }

    /// Returns `ids` after checking that they are in the vocabulary.
    fn known_ids(&self, file: &str, name: &str, ids: &Option<Ids>) -> Result<Vec<u64>> {
        let ids = match ids {
            Some(Ids::One(id)) => std::slice::from_ref(id),
            Some(Ids::Many(ids)) => ids,
            None => &[],
        };
        // −1 stands for "none" in some exports.
        let known = ids.iter().filter(|&&id| id != -1).map(|&id| {
            u64::try_from(id).ok().filter(|&id| id < self.vocab_size as u64).ok_or_else(|| {
                Error::format(file, format!("has the {name} token id {id}, but a vocabulary of {}", self.vocab_size))
            })
        });
        known.collect()
    }

    /// Whether an optional tensor is unused by this model, even if present.
    pub(super) fn may_omit(&self, spec: &Spec) -> bool {
        spec.official == "lm_head.weight" && self.tie_word_embeddings == Some(true)
            || spec.name.ends_with("_proj.bias") && !self.mamba_proj_bias
            || spec.name.ends_with("ssm_conv1d.bias") && !self.mamba_conv_bias
    }

    /// Whether a used tensor may be absent. Consumers' key norms are never used; the output head is optional only if
    /// config.json does not mention it.
    pub(super) fn may_lack(&self, spec: &Spec, config: &Config) -> bool {
        match spec.official.as_str() {
            "lm_head.weight" => self.tie_word_embeddings.is_none(),
            name => config.qk_norm && spec.optional && name.ends_with("k_norm.weight"),
        }
    }
}
