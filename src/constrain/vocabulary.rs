//! The tokenizer's vocabulary as a byte trie.

use std::{fmt, sync::Arc};

use llguidance::{ParserFactory, earley::SlicedBiasComputer, toktrie};
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::compile;
use crate::{
    Error, Result, foreign,
    text::{Entry, Tokenizer},
};

/// Maximum length in bytes of tokens in constrained text. llguidance limits the depth of the trie.
const LONGEST: usize = 512;

/// A tokenizer's vocabulary, prepared for constraints. Clones share the data.
#[derive(Clone)]
pub struct Vocabulary {
    pub(super) factory: Arc<ParserFactory>,
    /// The vocabulary size.
    pub(super) tokens: u32,
    /// The tokens that end a text.
    pub(super) ends: Arc<[u32]>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.tokens).field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// The tokenizer interface of llguidance.
struct Env {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Returns the tokenization of `bytes` within a text.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            // Special token names are plain text here. `▁` is excluded, since the tokenizer would convert it to a
            // space.
            let ids = self.tokenizer.encode_more(text).ok();
            let same = ids.filter(|ids| self.trie.decode_raw(ids) == text.as_bytes());
            same.unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

impl Vocabulary {
    /// Prepares the vocabulary of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let mut words: Vec<_> = tokenizer.entries().into_iter().map(word).collect();
        let tokens = words.len() as u32;
        let mut ends: Vec<u32> = tokenizer.ends().iter().copied().filter(|&end| end < tokens).collect();
        let end_tokens = ends.clone();
        if ends.is_empty() {
            // llguidance requires an end token; this id is outside of the vocabulary and never chosen.
            words.push(Vec::new());
            ends.push(tokens);
        }
        let tokenizer = tokenizer.share();
        let prepared = foreign::call(|| {
            let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(Env { trie, tokenizer });
            let caps = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
            let mut factory = ParserFactory::new(&env, caps, &SlicedBiasComputer::general_slices())?;
            *factory.limits_mut() = compile::limits();
            factory.quiet();
            Ok::<_, anyhow::Error>(factory)
        });
        let unusable =
            |reason: String| Error::Request(format!("the model's vocabulary cannot be constrained: {reason}"));
        let factory = prepared.and_then(|done| done.map_err(|e| e.to_string())).map_err(unusable)?;
        Ok(Self { factory: Arc::new(factory), tokens, ends: end_tokens.into() })
    }

    /// Returns the special token of this name.
    pub(super) fn special(&self, name: &str) -> Option<u32> {
        self.factory.tok_env().tok_trie().get_special_token(name)
    }
}

/// Returns the bytes of a token in the trie.
fn word(entry: Entry) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    match entry {
        // This byte does not occur in UTF-8 and has a special meaning in the trie.
        Entry::Text(bytes) if bytes == [MARKER] || bytes.len() > LONGEST => Vec::new(),
        Entry::Text(bytes) => bytes,
        Entry::Special(name) if name.is_empty() || name.len() > LONGEST => Vec::new(),
        Entry::Special(name) => [&[MARKER], name.as_bytes()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Model,
        text::{small_tokenizer, small_with_ends},
    };

    fn demo_tokenizer() -> Tokenizer {
        Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/hymba-demo.gguf")).unwrap().tokenizer().unwrap()
    }

    /// Asserts that the trie's bytes of each token are those that decoding shows.
    fn assert_same_text(tokenizer: &Tokenizer) {
        let vocabulary = Vocabulary::new(tokenizer).unwrap();
        let trie = vocabulary.factory.tok_env().tok_trie();
        let entries = tokenizer.entries();
        assert_eq!(entries.len(), vocabulary.tokens as usize);
        for (entry, id) in entries.into_iter().zip(0..) {
            // In the middle of a text, where no space is removed.
            let mut stream = tokenizer.stream_after(&tokenizer.encode("a", false).unwrap());
            let shown = stream.push(id) + &stream.finish();
            let bytes = trie.token(id);
            match entry {
                Entry::Special(name) => assert_eq!(bytes, [b"\xff", name.as_bytes()].concat(), "{id}"),
                Entry::Text(_) if bytes.is_empty() => assert!(shown.is_empty() || shown == "\u{fffd}", "{id} {shown}"),
                Entry::Text(_) => assert_eq!(String::from_utf8_lossy(bytes), shown, "{id}"),
            }
        }
    }

    #[test]
    fn trie_bytes_equal_the_decoded_text() {
        assert_same_text(&small_tokenizer());
        assert_same_text(&demo_tokenizer());
    }

    #[test]
    fn forced_text_is_tokenized_like_plain_text() {
        let tokenizer = demo_tokenizer();
        let vocabulary = Vocabulary::new(&tokenizer).unwrap();
        let env = vocabulary.factory.tok_env();
        for text in ["{\"name\": \"Lily\"}", "Once upon a time", " a", "a", "é🙂\n", ""] {
            assert_eq!(env.tokenize(text), tokenizer.encode_more(text).unwrap(), "{text}");
        }
        for text in ["</s>", "▁▁a", "x<s>", "<extra_id_1>", "\u{0}"] {
            let ids = env.tokenize(text);
            assert_eq!(env.tok_trie().decode_raw(&ids), text.as_bytes(), "{text} is plain text");
        }
        let half = env.tokenize_bytes(b"a\xe2\x82");
        assert_eq!(env.tok_trie().decode_raw(&half), b"a\xe2\x82");
    }

    #[test]
    fn models_without_an_end_token_are_supported() {
        let vocabulary = Vocabulary::new(&small_with_ends(&[])).unwrap();
        assert_eq!(vocabulary.ends.len(), 0);
        assert_eq!(&*Vocabulary::new(&small_with_ends(&[2, 9999])).unwrap().ends, [2]);
    }
}
