//! The tokenizer of a model file: Hugging Face's `tokenizer.json` as one string.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokenizers::{Decoder, DecoderWrapper, Encoding, ModelWrapper, PostProcessorWrapper};

use super::{
    divide::{PART, SplitPoints, check_part},
    ends::end_tokens,
    parts::{self, Traits},
};
use crate::{Error, Result, foreign, format::gguf::Metadata, limits, threads};

/// The metadata key of the whole tokenizer.json.
const JSON: &str = "tokenizer.huggingface.json";

/// Size in bytes above which it is parsed in an interruptible way: several times that of actual ones.
const LARGE: usize = 8 << 20;

/// Encodes text to tokens and decodes it.
///
/// Decoding is defined on bytes, token by token: a byte token (`<0xE2>`) is its byte, any other token its text; invalid
/// UTF-8 becomes U+FFFD. Text that was already shown therefore never changes when more tokens arrive. Tokens that frame
/// a text (BOS, EOS, unknown, padding) have no text; other special tokens do.
pub struct Tokenizer {
    pub(super) inner: Arc<tokenizers::Tokenizer>,
    vocab: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    /// All end tokens.
    ends: Vec<u32>,
    pub(super) unknown: Option<u32>,
    add_bos: bool,
    /// Ids without text.
    without_text: Vec<u32>,
    /// Whether the decoder removes one space from the start of a text (as Llama's does).
    strips_space: bool,
    pub(super) traits: Traits,
    split_points: OnceLock<SplitPoints>,
    /// Cancels the tokenization of long texts.
    pub(super) cancel: Option<Arc<AtomicBool>>,
    encoded: AtomicU64,
}

/// The content of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Its bytes; empty if no token has the id.
    Text(Vec<u8>),
    /// A special token, by name.
    Special(String),
}

impl Tokenizer {
    /// Reads the tokenizer from a model file's metadata; `file` is the name for error messages.
    pub fn from_metadata(meta: &Metadata, file: &str) -> Result<Self> {
        Self::from_metadata_until(meta, file, &AtomicBool::new(false))
    }

    /// [`Tokenizer::from_metadata`], interrupted by `cancel`.
    pub fn from_metadata_until(meta: &Metadata, file: &str, cancel: &AtomicBool) -> Result<Self> {
        let json = meta.string(JSON).ok_or_else(|| Error::NoTokenizer(file.into()))?;
        let unusable = |problem: String| Error::format(file, format!("has an unusable tokenizer: {problem}"));
        // Actual ones are parsed in a few hundredths of a second.
        let (traits, inner) = if json.len() <= LARGE {
            parse(json)
        } else {
            let json = json.to_owned();
            threads::cancellable(cancel, move || parse(&json))?
        }
        .map_err(unusable)?;
        let strips_space = match inner.get_decoder() {
            None => return Err(unusable("its tokenizer.json has no decoder".into())),
            // Its tokens may be incomplete characters, which this program's token texts cannot represent.
            Some(DecoderWrapper::ByteLevel(_)) => {
                return Err(unusable(
                    "its tokens are byte-level (GPT-2's kind); Hymba's are SentencePiece-like".into(),
                ));
            }
            Some(decoder) => decoded(decoder, vec!["▁a".into()]).is_some_and(|text| text == "a"),
        };
        let id = |key: &str| meta.uint(&format!("tokenizer.ggml.{key}_token_id")).and_then(|v| u32::try_from(v).ok());
        Ok(Self {
            vocab: inner.get_vocab_size(true),
            inner: Arc::new(inner),
            bos: id("bos"),
            eos: id("eos"),
            ends: end_tokens(meta).into_iter().filter_map(|id| u32::try_from(id).ok()).collect(),
            unknown: id("unknown"),
            add_bos: meta.bool("tokenizer.ggml.add_bos_token").unwrap_or(true),
            without_text: ["bos", "eos", "unknown", "padding"].into_iter().filter_map(id).collect(),
            strips_space,
            traits,
            split_points: OnceLock::new(),
            cancel: None,
            encoded: AtomicU64::new(0),
        })
    }

    /// Returns another handle to this tokenizer, without its cancellation flag. The data is shared.
    pub fn share(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            ends: self.ends.clone(),
            without_text: self.without_text.clone(),
            split_points: OnceLock::new(),
            cancel: None,
            encoded: AtomicU64::new(0),
            ..*self
        }
    }

    /// Returns this tokenizer with a cancellation flag: once it is set, tokenization of long texts and rendering of its
    /// [templates](Tokenizer::template) end with [`Error::Cancelled`].
    pub fn cancelled_by(self, cancel: &Arc<AtomicBool>) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }

    /// Returns a lower bound for the number of tokens of `text`, computed much faster than the tokens; 0 if there is
    /// none.
    pub fn least_tokens(&self, text: &str) -> usize {
        if text.len() <= PART { 0 } else { self.split_points().least_tokens(text) }
    }

    pub(super) fn split_points(&self) -> &SplitPoints {
        self.split_points.get_or_init(|| {
            let vocabulary = self.inner.get_vocab(false);
            let added = self.inner.get_added_tokens_decoder();
            let is_lossless = self.traits.plain && self.traits.is_lossless;
            SplitPoints::new(
                vocabulary.keys().map(String::as_str),
                added.values().map(|token| token.content.as_str()),
                is_lossless,
            )
        })
    }

    /// Returns the ids of `text`. Names of special tokens in it (`<s>`) become those tokens, as in llama.cpp and
    /// Hugging Face. `with_bos` prepends the BOS token if the model uses one and the text does not start with it.
    pub fn encode(&self, text: &str, with_bos: bool) -> Result<Vec<u32>> {
        self.encode_until(text, with_bos, self.cancel.as_deref().unwrap_or(&AtomicBool::new(false)))
    }

    /// [`Tokenizer::encode`], interrupted by `cancel`.
    pub fn encode_until(&self, text: &str, with_bos: bool, cancel: &AtomicBool) -> Result<Vec<u32>> {
        limits::check_prompt(text, "the text")?;
        let ids = self.split(text, cancel)?;
        Ok(if with_bos { self.with_bos(ids) } else { ids })
    }

    /// Prepends the BOS token to `ids` if the model uses one and they do not start with it.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos.filter(|_| self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Returns the ids of `text` as the continuation of another text: without BOS, and without the space that Llama's
    /// tokenizers prepend to a text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        let (before, all) = (self.encode(BEFORE, false)?, self.encode(&format!("{BEFORE}{text}"), false)?);
        Ok(all.strip_prefix(&*before).map(Into::into).unwrap_or(self.encode(text, false)?))
    }

    /// Returns the ids of a text of any length, encoded in parts.
    fn split(&self, text: &str, cancel: &AtomicBool) -> Result<Vec<u32>> {
        if text.len() <= PART || !self.traits.plain {
            return self.split_part(text);
        }
        let before = self.split_part(BEFORE)?;
        let mut ids = Vec::new();
        for part in self.split_points().parts(text) {
            Error::check_cancelled(cancel)?;
            if ids.is_empty() {
                ids = self.split_part(part)?;
                continue;
            }
            // Encoded as a continuation: at the start of a text, the tokenizer prepends a space.
            let all = self.split_part(&format!("{BEFORE}{part}"))?;
            match all.strip_prefix(&*before) {
                Some(more) => ids.extend_from_slice(more),
                None => return self.split_part(text),
            }
        }
        Ok(ids)
    }

    fn split_part(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, |inner| inner.encode_fast(text, false))?.get_ids().to_vec())
    }

    /// Returns the result of `encode` for `text`, which must be short enough to be encoded in one piece.
    pub(super) fn encoding(
        &self,
        text: &str,
        encode: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<Encoding>,
    ) -> Result<Encoding> {
        let failed = |problem: String| Error::Request(format!("cannot split the text into tokens: {problem}"));
        check_part(text.len(), self.traits.growth).map_err(|problem| Error::Request(format!("the text {problem}")))?;
        self.count_bytes(text);
        let encoding = foreign::call(|| {
            let encoding = encode(&self.inner);
            // Without a pre-tokenizer, the library caches up to 10,000 whole texts and evicts none: 80 MB, and hits would
            // reveal, by their time, what other users have sent.
            if let ModelWrapper::BPE(model) = self.inner.get_model() {
                model.clear_cache();
            }
            encoding
        });
        encoding.and_then(|encoding| encoding.map_err(|e| e.to_string())).map_err(failed)
    }

    /// Returns the text of `ids`; ids beyond the vocabulary have none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Returns the BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the number of bytes tokenized so far, a measure of the work.
    pub fn bytes_encoded(&self) -> u64 {
        self.encoded.load(Ordering::Relaxed)
    }

    pub(super) fn count_bytes(&self, text: &str) {
        self.encoded.fetch_add(text.len() as u64, Ordering::Relaxed);
    }

    /// Whether `id` is a byte token.
    pub(super) fn is_byte(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| byte_token(&token).is_some())
    }

    /// Returns the name of a token, as used in templates; empty if there is none.
    pub fn name(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.inner.id_to_token(id)).unwrap_or_default()
    }

    /// Returns the number of tokens, including added ones.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Whether decoding removes one space from the start of a text.
    pub(super) fn strips_space(&self) -> bool {
        self.strips_space
    }

    /// Returns the entry of each id, up to the largest id.
    pub fn entries(&self) -> Vec<Entry> {
        let added = self.inner.get_added_tokens_decoder();
        let ids = self.inner.get_vocab(true).into_values().max().map_or(0, |last| last + 1);
        let entry = |id: u32| {
            let special = added.get(&id).is_some_and(|token| token.special);
            if special || self.without_text.contains(&id) || self.ends.contains(&id) {
                return Entry::Special(self.name(Some(id)));
            }
            Entry::Text(self.piece(id))
        };
        (0..ids).map(entry).collect()
    }

    /// Returns the bytes of `id` in the middle of a text.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        if self.without_text.contains(&id) {
            return Vec::new();
        }
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if let Some(byte) = byte_token(&token) {
            return vec![byte];
        }
        // Preceded by another token, since the decoder treats the first token of a text differently.
        const BEFORE: &str = "a";
        let decoded = self.inner.get_decoder().and_then(|d| decoded(d, vec![BEFORE.into(), token.clone()]));
        match decoded.as_deref().and_then(|text| text.strip_prefix(BEFORE)) {
            Some(text) => text.into(),
            None => token.into(),
        }
    }
}

/// Parses tokenizer.json and returns the tokenizer with its properties, or why it is unusable.
fn parse(json: &str) -> std::result::Result<(Traits, tokenizers::Tokenizer), String> {
    let traits = parts::check(json)?;
    let parsed = foreign::call(|| {
        let mut inner: tokenizers::Tokenizer = json.parse()?;
        inner.with_padding(None).with_truncation(None)?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(inner)
    });
    let inner = parsed.and_then(|parsed| parsed.map_err(|e: tokenizers::Error| e.to_string()));
    Ok((traits, inner.map_err(|e| format!("tokenizer.json is not valid: {e}"))?))
}

/// Text before a continuation: its byte is a token that never merges with another.
const BEFORE: &str = "\n";

/// Returns the text of `tokens` according to `decoder`, unless it fails.
fn decoded(decoder: &DecoderWrapper, tokens: Vec<String>) -> Option<String> {
    foreign::call(|| decoder.decode(tokens).ok()).ok()?
}

/// Returns the byte of a byte token, such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tokenizer like Llama's: `<unk>`, `<s>`, `</s>`, the 256 bytes, then "▁", "a", "b", "▁a", "ab", "▁ab", "é" and
    /// `<extra_id_1>`.
    fn json() -> serde_json::Value {
        serde_json::from_str(include_str!("small-tokenizer.json")).unwrap()
    }

    fn metadata(json: &serde_json::Value) -> Metadata {
        let mut meta = Metadata::default();
        meta.set(JSON, json.to_string());
        for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
            meta.set(format!("tokenizer.ggml.{key}_token_id"), id);
        }
        meta
    }

    /// Returns a tokenizer of 267 tokens; bytes start at id 3, words at 259.
    pub(crate) fn small() -> Tokenizer {
        Tokenizer::from_metadata(&metadata(&json()), "small.gguf").unwrap()
    }

    /// The same, with these tokens that end a text.
    pub(crate) fn small_with_ends(ends: &[u32]) -> Tokenizer {
        Tokenizer { ends: ends.into(), ..small() }
    }

    #[test]
    fn several_end_tokens_are_supported() {
        let mut meta = metadata(&json());
        let ends = |meta: &Metadata| Tokenizer::from_metadata(meta, "f").unwrap().ends().to_vec();
        assert_eq!(ends(&meta), [2]);
        meta.set("tokenizer.ggml.eot_token_id", 262u32);
        assert_eq!(ends(&meta), [2, 262]);
        meta.set("hymba.eos_token_ids", vec![262u64, 2, u64::MAX, 9]);
        assert_eq!(ends(&meta), [2, 262, 9]);
        meta.set("hymba.eos_token_ids", (0..1 << 20).collect::<Vec<u64>>());
        assert!(ends(&meta).len() <= limits::ENDS + 2, "a list without end");
    }

    #[test]
    fn bos_is_optional() {
        let t = small();
        assert_eq!(t.encode("ab a", false).unwrap(), [264, 262]);
        assert_eq!(t.encode("ab a", true).unwrap(), [1, 264, 262]);
        assert_eq!(t.encode("<s>ab", true).unwrap(), [1, 264], "no second BOS");
        assert_eq!(t.encode("", true).unwrap(), [1]);
        let five = t.encode("a a a a a", false).unwrap();
        assert_eq!(five, [262; 5], "truncation in tokenizer.json is ignored");
        assert_eq!((t.bos(), t.eos(), t.vocab()), (Some(1), Some(2), 267));

        let mut meta = metadata(&json());
        meta.set("tokenizer.ggml.add_bos_token", false);
        assert_eq!(Tokenizer::from_metadata(&meta, "f").unwrap().encode("a", true).unwrap(), [262]);
    }

    #[test]
    fn continuations_get_no_leading_space() {
        let t = small();
        assert_eq!(t.encode_more("ab").unwrap(), [263]);
        assert_eq!(t.encode_more(" ab\na").unwrap(), [264, 3 + 10, 260]);
        assert_eq!(t.encode_more("").unwrap(), [] as [u32; 0]);
        let whole = t.encode("ab ab", false).unwrap();
        assert_eq!([t.encode("ab", false).unwrap(), t.encode_more(" ab").unwrap()].concat(), whole);
    }

    /// A long text is encoded in parts, with the same result as the library's for the whole text.
    #[test]
    fn splitting_does_not_change_the_tokens() {
        let t = small();
        let words = ["ab", " a", "a<extra_id_1>b", "é", "\n", "  ", "<s>", "ba", "▁b", "…"];
        let mut state = 7usize;
        let mut text = String::new();
        while text.len() < 5 * PART {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += words[(state >> 33) % words.len()];
        }
        let whole = t.inner.encode_fast(&*text, false).unwrap();
        assert!(t.split_points().parts(&text).count() > 3);
        assert_eq!(t.encode(&text, false).unwrap(), whole.get_ids());
        let least = t.least_tokens(&text);
        assert!(least > 0 && least <= whole.get_ids().len(), "{least}");
    }

    #[test]
    fn splitting_ends_when_it_is_cancelled() {
        let cancel = Arc::new(AtomicBool::new(true));
        let t = small().cancelled_by(&cancel);
        assert!(matches!(t.encode(&"ba".repeat(PART), true), Err(Error::Cancelled)));
        assert!(t.encode("ba", true).is_ok(), "short texts are tokenized even after cancellation");
    }

    /// Indivisible text would take unbounded memory and time.
    #[test]
    fn indivisible_text_has_a_limit() {
        let message = small().encode(&"…".repeat(100_000), true).map(|ids| ids.len()).unwrap_err().to_string();
        assert!(message.contains("has 300000 bytes that cannot be divided"), "{message}");
        assert!(small().encode(&"ba".repeat(200_000), true).is_ok());
    }

    /// The library panics if the second half of a merge is shorter than this prefix.
    #[test]
    fn tokenizers_that_make_the_library_panic_are_rejected() {
        let mut value = json();
        value["model"]["continuing_subword_prefix"] = "####".into();
        let refusal = Tokenizer::from_metadata(&metadata(&value), "m.gguf").err().unwrap().to_string();
        assert!(refusal.contains("continuing_subword_prefix"), "{refusal}");
        assert!(foreign::call(|| value.to_string().parse::<tokenizers::Tokenizer>()).is_err(), "no panic");
    }

    #[test]
    fn decoding_returns_the_text() {
        let t = small();
        for text in ["", "ab", " ab", "  a  b ", "a\nb", "héé…🙂 b", "\u{0}", "▁"] {
            let ids = t.encode(text, true).unwrap();
            let expected = text.replace('▁', " ");
            assert_eq!(t.decode(&ids), expected);
            assert_eq!(t.inner.decode(&ids, true).unwrap(), expected, "the library agrees on {text:?}");
        }
        assert_eq!(t.decode(&t.encode("a<extra_id_1>", true).unwrap()), "a<extra_id_1>");
        assert_eq!(t.decode(&[262, 9999]), "a");
    }

    #[test]
    fn unusable_tokenizers_are_rejected() {
        let refusal = |meta: &Metadata| Tokenizer::from_metadata(meta, "m.gguf").err().unwrap().to_string();
        assert_eq!(refusal(&Metadata::default()), "m.gguf: has no tokenizer");
        let mut broken = Metadata::default();
        broken.set(JSON, "{\"version\": ");
        assert!(refusal(&broken).contains("unusable tokenizer"));
        let mut value = json();
        value["decoder"] = serde_json::Value::Null;
        assert!(refusal(&metadata(&value)).contains("no decoder"));
        value["decoder"] =
            serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        assert!(refusal(&metadata(&value)).contains("byte-level"));
    }
}
