//! Tokenizer files: tokenizer.json is stored unchanged for this program, and converted to ggml's keys for other
//! readers.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
};

use serde::Deserialize;

use super::read::{json, optional, parse, text};
use crate::{
    Error, Result,
    format::{
        exists,
        gguf::{Metadata, Value},
    },
    model::Config,
};

#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u64>,
    merges: Vec<Merge>,
    unk_token: Option<String>,
}

/// A merge of two pieces; older files write them as one string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl Merge {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Pair(left, right) => format!("{left} {right}"),
        }
    }

    /// Returns the merged piece.
    fn piece(&self) -> Option<String> {
        match self {
            Self::Text(text) => text.split_once(' ').map(|(left, right)| format!("{left}{right}")),
            Self::Pair(left, right) => Some(format!("{left}{right}")),
        }
    }
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    special: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    chat_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// ggml's `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}

/// Adds the tokenizer's keys from the available files.
pub(super) fn import(folder: &Path, config: &Config, metadata: &mut Metadata, notes: &mut Vec<String>) -> Result<()> {
    let path = folder.join("tokenizer.json");
    if exists(&path)? {
        let source = text(&path)?;
        let tokenizer: Tokenizer = parse(&path, &source)?;
        metadata.set("tokenizer.huggingface.json", source);
        add_ggml_keys(tokenizer, config, &path.display().to_string(), metadata)?;
    } else {
        notes.push("the folder has no tokenizer.json; the model works with token ids only".into());
    }
    let path = folder.join("tokenizer_config.json");
    let settings = optional(&path, notes, json::<TokenizerConfig>).unwrap_or_default();
    if let Some(add) = settings.add_bos_token {
        metadata.set("tokenizer.ggml.add_bos_token", add);
    }
    let jinja = folder.join("chat_template.jinja");
    let template = optional(&jinja, notes, text).or_else(|| match settings.chat_template? {
        Template::One(text) => Some(text),
        Template::Named(all) => all.into_iter().find(|t| t.name == "default").map(|t| t.template),
    });
    if let Some(template) = template {
        metadata.set("tokenizer.chat_template", template);
    }
    Ok(())
}

fn add_ggml_keys(tokenizer: Tokenizer, config: &Config, file: &str, metadata: &mut Metadata) -> Result<()> {
    let Tokenizer { model, added_tokens } = tokenizer;
    let bad = |problem: String| Error::format(file, problem);
    if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(bad("is not a BPE tokenizer, which Hymba models use".into()));
    }
    let mut tokens: Vec<Option<(String, i64)>> = vec![None; config.vocab];
    let slot = |tokens: &mut Vec<Option<(String, i64)>>, id: u64, text: &str, kind| {
        let entry = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
        let entry = entry.ok_or_else(|| {
            bad(format!("gives `{text}` the id {id}, but config.json says vocab_size {}", config.vocab))
        })?;
        *entry = Some((text.to_owned(), kind));
        Ok(())
    };
    for (text, &id) in &model.vocab {
        slot(&mut tokens, id, text, if is_byte(text) { kind::BYTE } else { kind::NORMAL })?;
    }
    for added in &added_tokens {
        let kind = match added.special {
            _ if model.unk_token.as_ref() == Some(&added.content) => kind::UNKNOWN,
            true => kind::CONTROL,
            false => kind::USER_DEFINED,
        };
        slot(&mut tokens, added.id, &added.content, kind)?;
    }

    // Readers merge the pair with the highest score first; a piece's score is the negative rank of the first merge that
    // produces it.
    let mut rank = HashMap::new();
    for (i, piece) in model.merges.iter().map(Merge::piece).enumerate() {
        let piece = piece.ok_or_else(|| bad(format!("has a merge (number {i}) that is not a pair")))?;
        if let Entry::Vacant(entry) = rank.entry(piece) {
            entry.insert(i);
        }
    }
    let (mut texts, mut kinds, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for (id, token) in tokens.into_iter().enumerate() {
        let (text, kind) = token.unwrap_or_else(|| (format!("[PAD{id}]"), kind::UNUSED));
        scores.push(rank.get(&text).map_or(0.0, |&rank| 0.0 - rank as f64));
        kinds.push(kind);
        texts.push(text);
    }
    if let Some(id) = model.unk_token.and_then(|unk| model.vocab.get(&unk).copied()) {
        metadata.set("tokenizer.ggml.unknown_token_id", id);
    }
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.tokens", texts);
    metadata.set("tokenizer.ggml.scores", scores);
    metadata.set("tokenizer.ggml.token_type", Value::Ints(kinds));
    metadata.set("tokenizer.ggml.merges", model.merges.iter().map(Merge::text).collect::<Vec<_>>());
    Ok(())
}

/// Whether it is a byte token, `<0x00>` to `<0xFF>`.
fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
