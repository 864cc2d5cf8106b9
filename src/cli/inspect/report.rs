//! What `hymba inspect` finds out about a model file.

use hymba::{
    format::{
        CacheType, DType,
        gguf::{Metadata, Strings, Tensor, Value},
    },
    model::{Activation, Config, plan::Plan},
};
use serde::Serialize;

/// Lengths of text for which the cache is worked out.
const TEXTS: [usize; 3] = [1024, 8192, 32768];

/// Everything the command shows, in the order of the JSON object.
#[derive(Serialize)]
pub struct Report {
    pub file: String,
    pub bytes: u64,
    pub name: Option<String>,
    pub license: Option<String>,
    /// Values of all tensors but the stored state.
    pub parameters: u64,
    pub bits_per_weight: f64,
    pub types: Vec<TypeUse>,
    pub sizes: Sizes,
    #[serde(skip)]
    pub plan: Plan,
    pub layers: Vec<Layer>,
    pub cache: Vec<Cache>,
    pub meta_state: Option<MetaState>,
    pub tokenizer: Option<Tokenizer>,
    pub chat_template: Option<String>,
    /// `general.sampling.*`, under their last names.
    pub sampling: serde_json::Map<String, serde_json::Value>,
    pub tensors: Vec<TensorLine>,
}

/// How much of the weights one storage type holds.
#[derive(Serialize)]
pub struct TypeUse {
    pub r#type: &'static str,
    pub tensors: usize,
    pub values: u64,
    pub bytes: u64,
}

#[derive(Serialize)]
pub struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub inner: usize,
    pub feed_forward: usize,
    pub activation: &'static str,
    pub heads: usize,
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub qk_norm: bool,
    pub window: Option<usize>,
    pub meta_tokens: usize,
    pub context_length: usize,
    pub rope_base: Option<f32>,
    pub ssm_state: usize,
    pub conv_kernel: usize,
    pub dt_rank: usize,
    pub vocabulary: usize,
}

#[derive(Serialize)]
pub struct Layer {
    pub windowed: bool,
    pub kv_source: usize,
    pub kv_readers: Vec<usize>,
}

/// Bytes a session keeps after a text: keys and values in F16, states in F32.
#[derive(Serialize)]
pub struct Cache {
    pub text_tokens: usize,
    pub windowed_kv_bytes: u64,
    pub global_kv_bytes: u64,
    pub state_bytes: u64,
}

/// What the file stores of the state after the meta tokens.
#[derive(Serialize)]
pub struct MetaState {
    pub tensors: usize,
    pub bytes: u64,
}

#[derive(Serialize)]
pub struct Tokenizer {
    pub kind: Option<String>,
    /// Is the whole `tokenizer.json` in the file?
    pub huggingface: bool,
    pub tokens: usize,
    pub bos: Option<Token>,
    pub eos: Option<Token>,
    pub unk: Option<Token>,
    pub pad: Option<Token>,
    pub add_bos: Option<bool>,
}

#[derive(Serialize)]
pub struct Token {
    pub id: u64,
    pub text: Option<String>,
}

#[derive(Serialize)]
pub struct TensorLine {
    pub name: String,
    pub shape: Vec<usize>,
    pub r#type: &'static str,
    pub bytes: usize,
    pub offset: u64,
}

impl Report {
    /// Returns what the file `file` of `size` bytes holds.
    pub fn new(file: &str, size: u64, metadata: &Metadata, tensors: &[Tensor]) -> hymba::Result<Self> {
        let config = Config::from_metadata(metadata, file)?;
        let plan = Plan::new(&config);
        let (stored, weights): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| t.name.starts_with("meta_state."));
        let types: Vec<_> = DType::ALL.into_iter().filter_map(|dtype| TypeUse::new(dtype, &weights)).collect();
        let parameters = types.iter().map(|t| t.values).sum();
        let weight_bytes: u64 = types.iter().map(|t| t.bytes).sum();
        let text = |key| metadata.string(key).map(String::from);
        Ok(Self {
            file: file.into(),
            bytes: size,
            name: text("general.name"),
            license: text("general.license"),
            parameters,
            bits_per_weight: weight_bytes as f64 * 8.0 / (parameters as f64).max(1.0),
            types,
            sizes: Sizes::new(&config),
            layers: plan
                .layers
                .iter()
                .map(|l| Layer { windowed: l.windowed, kv_source: l.kv_source, kv_readers: l.readers.clone() })
                .collect(),
            cache: TEXTS.into_iter().map(|tokens| Cache::new(&plan, tokens)).collect(),
            plan,
            meta_state: (!stored.is_empty())
                .then(|| MetaState { tensors: stored.len(), bytes: stored.iter().map(|t| t.data.len() as u64).sum() }),
            tokenizer: Tokenizer::new(metadata),
            chat_template: text("tokenizer.chat_template"),
            sampling: sampling(metadata),
            tensors: tensors
                .iter()
                .map(|t| TensorLine {
                    name: t.name.clone(),
                    shape: t.dims.clone(),
                    r#type: t.dtype.name(),
                    bytes: t.data.len(),
                    offset: t.offset,
                })
                .collect(),
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

impl Sizes {
    fn new(c: &Config) -> Self {
        Self {
            layers: c.layers,
            hidden: c.hidden,
            inner: c.inner,
            feed_forward: c.ffn,
            activation: match c.activation {
                Activation::Silu => "silu",
                Activation::Relu2 => "relu2",
            },
            heads: c.heads,
            kv_heads: c.kv_heads,
            key_dim: c.key_dim,
            value_dim: c.value_dim,
            qk_norm: c.qk_norm,
            window: c.window,
            meta_tokens: c.meta_tokens,
            context_length: c.context_length,
            rope_base: c.rope.then_some(c.rope_base),
            ssm_state: c.state,
            conv_kernel: c.conv_kernel,
            dt_rank: c.dt_rank,
            vocabulary: c.vocab,
        }
    }
}

impl Cache {
    fn new(plan: &Plan, tokens: usize) -> Self {
        Self {
            text_tokens: tokens,
            windowed_kv_bytes: plan.windowed_kv_bytes(tokens, CacheType::default()),
            global_kv_bytes: plan.global_kv_bytes(tokens, CacheType::default()),
            state_bytes: plan.state_bytes(),
        }
    }
}

impl Tokenizer {
    fn new(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.string("tokenizer.ggml.model").map(String::from);
        let huggingface = metadata.string("tokenizer.huggingface.json").is_some();
        let pieces = metadata.strings("tokenizer.ggml.tokens");
        let token = |role: &str| {
            let id = metadata.uint(&format!("tokenizer.ggml.{role}_token_id"))?;
            let text = usize::try_from(id).ok().and_then(|i| pieces?.get(i)).map(String::from);
            Some(Token { id, text })
        };
        (kind.is_some() || huggingface).then(|| Self {
            kind,
            huggingface,
            tokens: pieces.map_or(0, Strings::len),
            bos: token("bos"),
            eos: token("eos"),
            unk: token("unknown"),
            pad: token("padding"),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token"),
        })
    }
}

/// The file's sampling defaults. Floats are told as the f32 they were, not with the digits of an f64.
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
