//! The tokenizer that a model file carries: Hugging Face's `tokenizer.json` as one string.

use tokenizers::{Decoder, DecoderWrapper, PostProcessorWrapper};

use super::parts;
use crate::{Error, Result, format::gguf::Metadata, limits};

/// The whole of `tokenizer.json`.
const JSON: &str = "tokenizer.huggingface.json";

/// Splits text into tokens and puts them together again.
///
/// Decoding is defined on bytes, one token after the other: a byte token (`<0xE2>`) is its byte, any other token its
/// text; what is no UTF-8 becomes U+FFFD. So text that was shown never changes when more tokens arrive. Tokens that
/// frame a text (begin, end, unknown, padding) have no text; other special tokens do.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    /// Ids that decode to nothing.
    silent: Vec<u32>,
    /// Does the decoder take one space off the beginning of a text (as Llama's does)?
    strips_space: bool,
}

impl Tokenizer {
    /// Reads the tokenizer out of a model file's metadata; `file` is the name for error messages.
    pub fn from_metadata(meta: &Metadata, file: &str) -> Result<Self> {
        let json = meta.string(JSON).ok_or_else(|| Error::NoTokenizer(file.into()))?;
        let unusable = |what: String| Error::format(file, format!("has an unusable tokenizer: {what}"));
        if let Some(what) = parts::objection(json) {
            return Err(unusable(what));
        }
        let mut inner: tokenizers::Tokenizer =
            json.parse().map_err(|e: tokenizers::Error| unusable(format!("tokenizer.json says {e}")))?;
        inner.with_padding(None).with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let strips_space = match inner.get_decoder() {
            None => return Err(unusable("its tokenizer.json has no decoder".into())),
            // A token may then be a part of a character that no token text can hold.
            Some(DecoderWrapper::ByteLevel(_)) => {
                return Err(unusable(
                    "its tokens are byte-level (GPT-2's kind); Hymba's are SentencePiece-like".into(),
                ));
            }
            Some(decoder) => decoder.decode(vec!["▁a".into()]).is_ok_and(|text| text == "a"),
        };
        let id = |key: &str| meta.uint(&format!("tokenizer.ggml.{key}_token_id")).and_then(|v| u32::try_from(v).ok());
        Ok(Self {
            vocab: inner.get_vocab_size(true),
            inner,
            bos: id("bos"),
            eos: id("eos"),
            add_bos: meta.bool("tokenizer.ggml.add_bos_token").unwrap_or(true),
            silent: ["bos", "eos", "unknown", "padding"].into_iter().filter_map(id).collect(),
            strips_space,
        })
    }

    /// The ids of `text`. The names of special tokens in it (`<s>`) become those tokens, as in llama.cpp and Hugging
    /// Face. `with_bos` puts the begin token in front, if the model wants one and the text does not name it itself.
    pub fn encode(&self, text: &str, with_bos: bool) -> Result<Vec<u32>> {
        limits::check_prompt(text, "the text")?;
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::Request(format!("cannot split the text into tokens: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|_| with_bos && self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The ids of `text` where it goes on after other text: without the begin token, and without the space that Llama's
    /// tokenizers put in front of a text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        // Its byte is a token that joins with no other.
        const BEFORE: &str = "\n";
        let (before, all) = (self.encode(BEFORE, false)?, self.encode(&format!("{BEFORE}{text}"), false)?);
        Ok(all.strip_prefix(&*before).map(Into::into).unwrap_or(self.encode(text, false)?))
    }

    /// The text of `ids`; ids beyond the vocabulary have none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The name of a token, as templates may say it; empty if there is none.
    pub fn name(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.inner.id_to_token(id)).unwrap_or_default()
    }

    /// Tokens, the added ones included.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Does a text lose one space at its beginning when it is decoded?
    pub(super) fn strips_space(&self) -> bool {
        self.strips_space
    }

    /// The bytes that `id` stands for in the middle of a text.
    pub(super) fn piece(&self, id: u32) -> Vec<u8> {
        if self.silent.contains(&id) {
            return Vec::new();
        }
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if let Some(byte) = byte_token(&token) {
            return vec![byte];
        }
        // Something before it keeps the decoder from treating the token as the beginning of a text.
        const BEFORE: &str = "a";
        let decoded = self.inner.get_decoder().and_then(|d| d.decode(vec![BEFORE.into(), token.clone()]).ok());
        match decoded.as_deref().and_then(|text| text.strip_prefix(BEFORE)) {
            Some(text) => text.into(),
            None => token.into(),
        }
    }
}

/// The byte that a token named like `<0x0A>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `<unk>`, `<s>`, `</s>`, the 256 bytes, then these: Llama's construction in small.
    const WORDS: [&str; 8] = ["▁", "a", "b", "▁a", "ab", "▁ab", "é", "<extra_id_1>"];

    fn json() -> serde_json::Value {
        let special = ["<unk>", "<s>", "</s>"].map(String::from);
        let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
        let words = WORDS[..7].iter().map(|w| w.to_string());
        let vocab: serde_json::Map<_, _> =
            special.iter().cloned().chain(bytes).chain(words).zip(0..).map(|(t, id)| (t, id.into())).collect();
        let extra = ("<extra_id_1>".to_string(), vocab.len());
        let added: Vec<_> = special
            .into_iter()
            .zip(0..)
            .chain([extra])
            .map(|(content, id)| {
                serde_json::json!({"id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        serde_json::json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": added, "pre_tokenizer": null, "post_processor": null,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"]]},
        })
    }

    fn metadata(json: &serde_json::Value) -> Metadata {
        let mut meta = Metadata::default();
        meta.set(JSON, json.to_string());
        for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
            meta.set(format!("tokenizer.ggml.{key}_token_id"), id);
        }
        meta
    }

    /// A tokenizer of 267 tokens; ids of `WORDS` start at 259, bytes at 3.
    pub(crate) fn small() -> Tokenizer {
        Tokenizer::from_metadata(&metadata(&json()), "small.gguf").unwrap()
    }

    #[test]
    fn encodes_with_and_without_the_begin_token() {
        let t = small();
        assert_eq!(t.encode("ab a", false).unwrap(), [264, 262]);
        assert_eq!(t.encode("ab a", true).unwrap(), [1, 264, 262]);
        assert_eq!(t.encode("<s>ab", true).unwrap(), [1, 264], "no second begin token");
        assert_eq!(t.encode("", true).unwrap(), [1]);
        let five = t.encode("a a a a a", false).unwrap();
        assert_eq!(five, [262; 5], "truncation asked for by tokenizer.json is not applied");
        assert_eq!((t.bos(), t.eos(), t.vocab()), (Some(1), Some(2), 267));

        let mut meta = metadata(&json());
        meta.set("tokenizer.ggml.add_bos_token", false);
        assert_eq!(Tokenizer::from_metadata(&meta, "f").unwrap().encode("a", true).unwrap(), [262]);
    }

    #[test]
    fn a_text_goes_on_without_a_space() {
        let t = small();
        assert_eq!(t.encode_more("ab").unwrap(), [263]);
        assert_eq!(t.encode_more(" ab\na").unwrap(), [264, 3 + 10, 260]);
        assert_eq!(t.encode_more("").unwrap(), [] as [u32; 0]);
        let whole = t.encode("ab ab", false).unwrap();
        assert_eq!([t.encode("ab", false).unwrap(), t.encode_more(" ab").unwrap()].concat(), whole);
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
    fn refuses_what_it_cannot_use() {
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
