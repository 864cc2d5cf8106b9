//! The facts that `hymba inspect` reports.

use hymba::{
    format::{
        CacheType, DType,
        gguf::{Metadata, Strings, Tensor, Value},
    },
    model::{
        Config,
        plan::{LayerPlan, Plan},
    },
    text::end_tokens,
};
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::cli::json::JSON_VERSION;

/// Context sizes for which the cache size is computed.
const TEXTS: [usize; 3] = [1024, 8192, 32768];

/// Everything the command reports, in the order of the JSON object.
#[derive(Serialize)]
pub struct Report<'a> {
    pub version: u32,
    pub file: String,
    pub bytes: u64,
    pub name: Option<String>,
    pub license: Option<String>,
    /// Number of parameters, without the stored state.
    pub parameters: u64,
    pub bits_per_weight: f64,
    pub types: Vec<TypeUse>,
    #[serde(rename = "sizes", with = "Sizes")]
    pub config: Config,
    #[serde(rename = "layers", serialize_with = "layers")]
    pub plan: Plan,
    pub cache: [Cache; TEXTS.len()],
    pub meta_state: Option<MetaState>,
    pub tokenizer: Option<Tokenizer>,
    pub chat_template: Option<String>,
    /// `general.sampling.*`, without the prefix.
    pub sampling: serde_json::Map<String, serde_json::Value>,
    #[serde(serialize_with = "tensors")]
    pub tensors: &'a [Tensor],
}

/// Totals per tensor type.
#[derive(Serialize)]
pub struct TypeUse {
    pub r#type: &'static str,
    pub tensors: usize,
    pub values: u64,
    pub bytes: u64,
}

/// The model's dimensions, as named in the JSON object.
#[derive(Serialize)]
#[serde(remote = "Config")]
struct Sizes {
    layers: usize,
    hidden: usize,
    inner: usize,
    #[serde(rename = "feed_forward")]
    ffn: usize,
    #[serde(getter = "activation")]
    activation: &'static str,
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    qk_norm: bool,
    window: Option<usize>,
    meta_tokens: usize,
    context_length: usize,
    #[serde(getter = "rope_base")]
    rope_base: Option<f32>,
    #[serde(rename = "ssm_state")]
    state: usize,
    conv_kernel: usize,
    dt_rank: usize,
    #[serde(rename = "vocabulary")]
    vocab: usize,
}

fn activation(config: &Config) -> &'static str {
    config.activation.name()
}

fn rope_base(config: &Config) -> Option<f32> {
    config.rope.then_some(config.rope_base)
}

fn layers<S: Serializer>(plan: &Plan, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(plan.layers.iter().map(|layer| {
        let LayerPlan { windowed, kv_source, readers } = layer;
        json!({ "windowed": windowed, "kv_source": kv_source, "kv_readers": readers })
    }))
}

/// Session size in bytes after a text: KV cache in F16, states in F32.
#[derive(Serialize)]
pub struct Cache {
    pub text_tokens: usize,
    pub windowed_kv_bytes: u64,
    pub global_kv_bytes: u64,
    pub state_bytes: u64,
}

/// The stored state after the meta tokens.
#[derive(Serialize)]
pub struct MetaState {
    pub tensors: usize,
    pub bytes: u64,
}

#[derive(Serialize)]
pub struct Tokenizer {
    pub kind: Option<String>,
    /// Whether the file contains `tokenizer.json`.
    pub huggingface: bool,
    pub tokens: usize,
    pub bos: Option<Token>,
    pub eos: Option<Token>,
    /// Further tokens that end a text.
    pub more_ends: Vec<Token>,
    pub unk: Option<Token>,
    pub pad: Option<Token>,
    pub add_bos: Option<bool>,
}

#[derive(Serialize)]
pub struct Token {
    pub id: u64,
    pub text: Option<String>,
}

fn tensors<S: Serializer>(tensors: &[Tensor], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(tensors.iter().map(|t| {
        let (r#type, bytes) = (t.dtype.name(), t.data.len());
        json!({ "name": t.name, "shape": t.dims, "type": r#type, "bytes": bytes, "offset": t.offset })
    }))
}

impl<'a> Report<'a> {
    /// Returns the report for the file `file` of `size` bytes.
    pub fn new(file: &str, size: u64, metadata: &Metadata, tensors: &'a [Tensor]) -> hymba::Result<Self> {
        let config = Config::from_metadata(metadata, file)?;
        let plan = Plan::new(&config);
        let (stored, weights): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| t.name.starts_with("meta_state."));
        let types: Vec<_> = DType::ALL.into_iter().filter_map(|dtype| TypeUse::new(dtype, &weights)).collect();
        let parameters = types.iter().map(|t| t.values).sum();
        let weight_bytes: u64 = types.iter().map(|t| t.bytes).sum();
        let cache = |text_tokens| Cache {
            text_tokens,
            windowed_kv_bytes: plan.kv_bytes(true, text_tokens, CacheType::default()),
            global_kv_bytes: plan.kv_bytes(false, text_tokens, CacheType::default()),
            state_bytes: plan.state_bytes(),
        };
        let text = |key| metadata.string(key).map(String::from);
        Ok(Self {
            version: JSON_VERSION,
            file: file.into(),
            bytes: size,
            name: text("general.name"),
            license: text("general.license"),
            parameters,
            bits_per_weight: weight_bytes as f64 * 8.0 / (parameters as f64).max(1.0),
            types,
            cache: TEXTS.map(cache),
            config,
            plan,
            meta_state: (!stored.is_empty())
                .then(|| MetaState { tensors: stored.len(), bytes: stored.iter().map(|t| t.data.len() as u64).sum() }),
            tokenizer: Tokenizer::new(metadata),
            chat_template: text("tokenizer.chat_template"),
            sampling: sampling(metadata),
            tensors,
        })
    }
}

impl TypeUse {
    fn new(dtype: DType, weights: &[&Tensor]) -> Option<Self> {
        let of_type = || weights.iter().filter(|t| t.dtype == dtype);
        (of_type().count() > 0).then(|| Self {
            r#type: dtype.name(),
            tensors: of_type().count(),
            values: of_type().map(|t| t.dims.iter().map(|&d| d as u64).product::<u64>()).sum(),
            bytes: of_type().map(|t| t.data.len() as u64).sum(),
        })
    }
}

impl Tokenizer {
    fn new(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.string("tokenizer.ggml.model").map(String::from);
        let huggingface = metadata.string("tokenizer.huggingface.json").is_some();
        let pieces = metadata.strings("tokenizer.ggml.tokens");
        let named = |id: u64| {
            let text = usize::try_from(id).ok().and_then(|i| pieces?.get(i)).map(String::from);
            Token { id, text }
        };
        let token = |role: &str| metadata.uint(&format!("tokenizer.ggml.{role}_token_id")).map(named);
        (kind.is_some() || huggingface).then(|| Self {
            kind,
            huggingface,
            tokens: pieces.map_or(0, Strings::len),
            bos: token("bos"),
            eos: token("eos"),
            more_ends: end_tokens(metadata).into_iter().skip(1).map(named).collect(),
            unk: token("unknown"),
            pad: token("padding"),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token"),
        })
    }
}

/// Returns the file's sampling defaults. Floats are printed as f32, not with the digits of an f64.
fn sampling(metadata: &Metadata) -> serde_json::Map<String, serde_json::Value> {
    let named = metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix("general.sampling.")?, value)));
    let simple = named.filter_map(|(name, value)| {
        let value = match value {
            Value::Uint(v) => (*v).into(),
            Value::Int(v) => (*v).into(),
            Value::Bool(v) => (*v).into(),
            Value::String(v) => v.as_str().into(),
            Value::Float(v) => (*v as f32).to_string().parse::<f64>().ok()?.into(),
            _ => return None,
        };
        Some((name.to_string(), value))
    });
    simple.collect()
}
