//! The hyper-parameters of a Hymba model, read from GGUF metadata and validated.

use crate::{
    Error, Result,
    format::gguf::{ARCHITECTURE, Metadata, Value},
    limits,
};

/// The feed-forward activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate·x) ⊙ (up·x).
    Silu,
    /// relu(up·x)², without a gate.
    Relu2,
}

impl Activation {
    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Relu2 => "relu2",
        }
    }

    /// Returns the activation called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Silu, Self::Relu2].into_iter().find(|activation| activation.name() == name)
    }
}

/// The sizes and constants of a model. Letters in brackets are those used in shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding (V).
    pub vocab: usize,
    /// Training context in positions, meta tokens included.
    pub context_length: usize,
    /// Width of the residual stream (H).
    pub hidden: usize,
    /// Layers (L).
    pub layers: usize,
    /// Width of the feed-forward network (F); 0: none.
    pub ffn: usize,
    /// The feed-forward activation.
    pub activation: Activation,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads kv head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Width of a query or key head (dk).
    pub key_dim: usize,
    /// Width of a value head (dv).
    pub value_dim: usize,
    /// Epsilon of every RMSNorm except the per-head ones.
    pub rms_eps: f32,
    /// Sliding window (W); `None`: all layers have full attention.
    pub window: Option<usize>,
    /// Per layer: whether it uses the sliding window.
    pub windowed: Vec<bool>,
    /// Per layer: the layer whose KV cache it uses (its own index in a producer).
    pub kv_source: Vec<usize>,
    /// RMSNorm on every query and key head, before RoPE.
    pub qk_norm: bool,
    /// Learned tokens prepended to every sequence (M).
    pub meta_tokens: usize,
    /// Whether queries and keys are rotated by position (RoPE).
    pub rope: bool,
    /// RoPE's base, after NTK scaling.
    pub rope_base: f32,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// Width of the Mamba branch and of the attention output (E).
    pub inner: usize,
    /// SSM state values per channel (N).
    pub state: usize,
    /// Rank of Δ's projection (R).
    pub dt_rank: usize,
    /// RMSNorm on Δ, B and C after x_proj.
    pub dt_b_c_norm: bool,
}

impl Config {
    /// Returns the configuration of Hymba-1.5B, according to the paper (table 11) and the published config.json.
    pub fn hymba_1_5b() -> Self {
        // After each global layer, pairs of layers share a KV cache; the first group of the second half is a triple.
        let source = |layer| match layer {
            0 | 15 | 31 => layer,
            1..15 => layer - (layer - 1) % 2,
            16..19 => 16,
            _ => layer - (layer - 19) % 2,
        };
        Self {
            vocab: 32001,
            context_length: 8192,
            hidden: 1600,
            layers: 32,
            ffn: 5504,
            activation: Activation::Silu,
            heads: 25,
            kv_heads: 5,
            key_dim: 64,
            value_dim: 128,
            rms_eps: 1e-6,
            window: Some(1024),
            windowed: (0..32).map(|layer| ![0, 15, 31].contains(&layer)).collect(),
            kv_source: (0..32).map(source).collect(),
            qk_norm: false,
            meta_tokens: 128,
            rope: true,
            rope_base: 74534.83,
            conv_kernel: 4,
            inner: 3200,
            state: 16,
            dt_rank: 100,
            dt_b_c_norm: true,
        }
    }

    /// Reads the hyper-parameters from `meta`; `file` is the name for error messages.
    pub fn from_metadata(meta: &Metadata, file: &str) -> Result<Self> {
        let bad = |problem: String| Error::format(file, problem);
        match meta.string("general.architecture") {
            Some(ARCHITECTURE) => {}
            Some(other) => {
                return Err(bad(format!(
                    "contains a model of architecture `{other}`; only `{ARCHITECTURE}` is supported"
                )));
            }
            None => return Err(bad("has no key general.architecture: not a hymba model file".into())),
        }
        let missing = |key: &str| Error::model(file, format!("has no usable key hymba.{key}"));
        let size = |key: &str| -> Result<usize> {
            let v = meta.uint(&format!("hymba.{key}")).ok_or_else(|| missing(key))?;
            let limit = if key == "context_length" { limits::CONTEXT } else { limits::WIDTH };
            usize::try_from(v)
                .ok()
                .filter(|&v| v <= limit)
                .ok_or_else(|| bad(format!("has hymba.{key} {v}, which is too large")))
        };
        let float = |key: &str| meta.float(&format!("hymba.{key}")).map(|v| v as f32).ok_or_else(|| missing(key));
        let string = |key: &str| meta.string(&format!("hymba.{key}")).ok_or_else(|| missing(key));

        let layers = size("block_count")?;
        if layers == 0 || layers > limits::LAYERS {
            return Err(bad(format!("has {layers} layers; 1 to {} are supported", limits::LAYERS)));
        }
        let activation = string("feed_forward_activation")?;
        let activation = Activation::from_name(activation).ok_or_else(|| {
            bad(format!("uses the feed-forward activation `{activation}`; supported: silu and relu2"))
        })?;
        let qk_norm = match string("attention.qk_norm")? {
            "none" => false,
            "rms" => true,
            other => return Err(bad(format!("uses the query/key norm `{other}`; supported: none and rms"))),
        };
        let window = size("attention.sliding_window")?;
        let windowed = meta
            .bools("hymba.attention.sliding_window_pattern")
            .ok_or_else(|| missing("attention.sliding_window_pattern"))?
            .to_vec();
        let kv_source = meta
            .uints("hymba.attention.kv_source")
            .ok_or_else(|| missing("attention.kv_source"))?
            .iter()
            .map(|&v| usize::try_from(v).unwrap_or(usize::MAX))
            .collect();
        let rotated = size("rope.dimension_count")?;
        let config = Self {
            vocab: size("vocab_size")?,
            context_length: size("context_length")?,
            hidden: size("embedding_length")?,
            layers,
            ffn: size("feed_forward_length")?,
            activation,
            heads: size("attention.head_count")?,
            kv_heads: size("attention.head_count_kv")?,
            key_dim: size("attention.key_length")?,
            value_dim: size("attention.value_length")?,
            rms_eps: float("attention.layer_norm_rms_epsilon")?,
            window: (window > 0).then_some(window),
            windowed,
            kv_source,
            qk_norm,
            meta_tokens: size("meta_token_count")?,
            rope: rotated > 0,
            rope_base: float("rope.freq_base")?,
            conv_kernel: size("ssm.conv_kernel")?,
            inner: size("ssm.inner_size")?,
            state: size("ssm.state_size")?,
            dt_rank: size("ssm.time_step_rank")?,
            dt_b_c_norm: meta.bool("hymba.ssm.dt_b_c_rms").ok_or_else(|| missing("ssm.dt_b_c_rms"))?,
        };
        if rotated > 0 && rotated != config.key_dim {
            let key_dim = config.key_dim;
            return Err(bad(format!("rotates {rotated} of {key_dim} values per head; only all or none are supported")));
        }
        match config.inconsistency() {
            Some(problem) => Err(bad(format!("is inconsistent: {problem}"))),
            None => Ok(config),
        }
    }

    /// The keys that [`Config::from_metadata`] reads.
    pub fn to_metadata(&self, meta: &mut Metadata) {
        let mut set = |key: &str, value: Value| meta.set(format!("hymba.{key}"), value);
        set("vocab_size", self.vocab.into());
        set("context_length", self.context_length.into());
        set("embedding_length", self.hidden.into());
        set("block_count", self.layers.into());
        set("feed_forward_length", self.ffn.into());
        set("feed_forward_activation", self.activation.name().into());
        set("attention.head_count", self.heads.into());
        set("attention.head_count_kv", self.kv_heads.into());
        set("attention.key_length", self.key_dim.into());
        set("attention.value_length", self.value_dim.into());
        set("attention.layer_norm_rms_epsilon", self.rms_eps.into());
        set("attention.sliding_window", self.window.unwrap_or(0).into());
        set("attention.sliding_window_pattern", self.windowed.clone().into());
        set("attention.kv_source", self.kv_source.iter().map(|&v| v as u64).collect::<Vec<_>>().into());
        set("attention.qk_norm", if self.qk_norm { "rms" } else { "none" }.into());
        set("meta_token_count", self.meta_tokens.into());
        set("rope.dimension_count", if self.rope { self.key_dim } else { 0 }.into());
        set("rope.freq_base", self.rope_base.into());
        set("ssm.conv_kernel", self.conv_kernel.into());
        set("ssm.inner_size", self.inner.into());
        set("ssm.state_size", self.state.into());
        set("ssm.time_step_rank", self.dt_rank.into());
        set("ssm.dt_b_c_rms", self.dt_b_c_norm.into());
    }

    /// Returns the inconsistency of the sizes, if any.
    pub fn inconsistency(&self) -> Option<String> {
        let Self { hidden, heads, kv_heads, key_dim, value_dim, inner, layers, .. } = *self;
        let positive = [
            ("vocabulary", self.vocab),
            ("hidden size", hidden),
            ("number of heads", heads),
            ("number of key/value heads", kv_heads),
            ("key width", key_dim),
            ("value width", value_dim),
            ("inner size", inner),
            ("state size", self.state),
            ("dt rank", self.dt_rank),
            ("convolution width", self.conv_kernel),
            ("context length", self.context_length),
        ];
        if let Some((name, _)) = positive.into_iter().find(|&(_, v)| v == 0) {
            return Some(format!("the {name} is 0"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Some(format!("{heads} query heads are not divisible by {kv_heads} key/value heads"));
        }
        if heads * key_dim != hidden {
            return Some(format!("{heads} query heads of width {key_dim} do not add up to the hidden size {hidden}"));
        }
        if heads * value_dim != inner {
            return Some(format!("{heads} value heads of width {value_dim} do not add up to the inner size {inner}"));
        }
        if self.rope && !key_dim.is_multiple_of(2) {
            return Some(format!("the key width {key_dim} is odd, but RoPE needs pairs"));
        }
        if self.rope && !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Some(format!("the RoPE base is {}", self.rope_base));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return Some(format!("the norms' epsilon is {}", self.rms_eps));
        }
        if self.windowed.len() != layers || self.kv_source.len() != layers {
            return Some(format!(
                "{layers} layers, but a window pattern of {} and key/value sources of {}",
                self.windowed.len(),
                self.kv_source.len()
            ));
        }
        if self.meta_tokens > limits::META_TOKENS {
            return Some(format!("{} meta tokens; the limit is {}", self.meta_tokens, limits::META_TOKENS));
        }
        let any_windowed = self.windowed.iter().any(|&w| w);
        if any_windowed && self.window.is_none() {
            return Some("a layer has a sliding window of size 0".into());
        }
        if any_windowed && self.windowed[0] && self.windowed.iter().any(|&w| !w) {
            return Some(
                "layer 0 is windowed while a later layer is global; the official code does not support that".into(),
            );
        }
        for (layer, &source) in self.kv_source.iter().enumerate() {
            if source > layer || self.kv_source[source] != source {
                return Some(format!("layer {layer} shares the KV cache of layer {source}, which has none"));
            }
            if self.windowed[layer] != self.windowed[source] {
                return Some(format!(
                    "layer {layer} shares the KV cache of layer {source}, but only one of them is windowed"
                ));
            }
        }
        None
    }

    /// Whether the layer is a producer: computes its own keys and values.
    pub fn is_producer(&self, layer: usize) -> bool {
        self.kv_source[layer] == layer
    }

    /// Returns the widths of one key row and one value row of the cache.
    pub fn kv_widths(&self) -> (usize, usize) {
        (self.kv_heads * self.key_dim, self.kv_heads * self.value_dim)
    }

    /// Returns the rows of the layer's in_proj: `[q|k|v|u|gate]` in producers, `[q|u|gate]` in consumers.
    pub fn in_proj_rows(&self, layer: usize) -> usize {
        let (k, v) = self.kv_widths();
        self.hidden + if self.is_producer(layer) { k + v } else { 0 } + 2 * self.inner
    }

    /// Returns the training context in text tokens.
    pub fn default_context(&self) -> usize {
        self.context_length.saturating_sub(self.meta_tokens).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(key: &str, value: usize) -> String {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", ARCHITECTURE);
        Config::hymba_1_5b().to_metadata(&mut metadata);
        assert_eq!(Config::from_metadata(&metadata, "m.gguf").unwrap(), Config::hymba_1_5b());
        metadata.set(key, value);
        Config::from_metadata(&metadata, "m.gguf").unwrap_err().to_string()
    }

    #[test]
    fn partial_rotation_is_rejected() {
        let message = refusal("hymba.rope.dimension_count", 32);
        assert_eq!(message, "m.gguf: rotates 32 of 64 values per head; only all or none are supported");
    }

    #[test]
    fn the_number_of_meta_tokens_is_limited() {
        let message = refusal("hymba.meta_token_count", 1 << 20);
        assert_eq!(message, "m.gguf: is inconsistent: 1048576 meta tokens; the limit is 2048");
    }
}
