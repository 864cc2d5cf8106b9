//! `hymba inspect`: what a model file holds, and what running it will take.

mod page;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use hymba::{
    format::{
        CacheType, DType,
        gguf::{Gguf, Metadata, Strings, Tensor, Value},
    },
    model::{Activation, Config, plan::Plan},
};
use serde::Serialize;

/// Show what a model file holds: sizes, layers, types, cache, tokenizer
#[derive(clap::Args)]
pub struct Args {
    /// The GGUF file
    model: PathBuf,
    /// List every tensor too
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object instead, tensors included
    #[arg(long)]
    json: bool,
}

/// Runs the command: the report goes to stdout, as wide as the terminal is.
pub fn run(args: &Args, _cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.model)?;
    let report = Report::new(&gguf.file, gguf.bytes.len() as u64, &gguf.metadata, &gguf.tensors)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        let terminal = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        page::write(&report, args.tensors, terminal.map_or(80, |(width, _)| width.0.into()), &mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// Lengths of text for which the cache is worked out.
const TEXTS: [usize; 3] = [1024, 8192, 32768];

/// Everything the command shows, in the order of the JSON object.
#[derive(Serialize)]
struct Report {
    file: String,
    bytes: u64,
    name: Option<String>,
    license: Option<String>,
    /// Values of all tensors but the stored state.
    parameters: u64,
    bits_per_weight: f64,
    types: Vec<TypeUse>,
    sizes: Sizes,
    #[serde(skip)]
    plan: Plan,
    layers: Vec<Layer>,
    cache: Vec<Cache>,
    meta_state: Option<MetaState>,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<String>,
    /// `general.sampling.*`, under their last names.
    sampling: serde_json::Map<String, serde_json::Value>,
    tensors: Vec<TensorLine>,
}

/// How much of the weights one storage type holds.
#[derive(Serialize)]
struct TypeUse {
    r#type: &'static str,
    tensors: usize,
    values: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Sizes {
    layers: usize,
    hidden: usize,
    inner: usize,
    feed_forward: usize,
    activation: &'static str,
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    qk_norm: bool,
    window: Option<usize>,
    meta_tokens: usize,
    context_length: usize,
    rope_base: Option<f32>,
    ssm_state: usize,
    conv_kernel: usize,
    dt_rank: usize,
    vocabulary: usize,
}

#[derive(Serialize)]
struct Layer {
    windowed: bool,
    kv_source: usize,
    kv_readers: Vec<usize>,
}

/// Bytes a session keeps after a text: keys and values in F16, states in F32.
#[derive(Serialize)]
struct Cache {
    text_tokens: usize,
    windowed_kv_bytes: u64,
    global_kv_bytes: u64,
    state_bytes: u64,
}

/// What the file stores of the state after the meta tokens.
#[derive(Serialize)]
struct MetaState {
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Tokenizer {
    kind: Option<String>,
    /// Is the whole `tokenizer.json` in the file?
    huggingface: bool,
    tokens: usize,
    bos: Option<Token>,
    eos: Option<Token>,
    unk: Option<Token>,
    pad: Option<Token>,
    add_bos: Option<bool>,
}

#[derive(Serialize)]
struct Token {
    id: u64,
    text: Option<String>,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    shape: Vec<usize>,
    r#type: &'static str,
    bytes: usize,
    offset: u64,
}

impl Report {
    fn new(file: &str, size: u64, metadata: &Metadata, tensors: &[Tensor]) -> hymba::Result<Self> {
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
