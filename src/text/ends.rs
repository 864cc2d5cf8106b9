//! End tokens. ggml has keys for end of text and end of turn; a model may have more.

use crate::{
    format::gguf::{ENDS, Metadata},
    limits,
};

/// Returns the tokens that end a text, from a model file's metadata; the end-of-text token comes first.
pub fn end_tokens(metadata: &Metadata) -> Vec<u64> {
    let named = ["eos", "eot", "eom"].map(|name| metadata.uint(&format!("tokenizer.ggml.{name}_token_id")));
    let mut ends = Vec::new();
    for id in named.into_iter().flatten().chain(metadata.uints(ENDS).into_iter().flatten().copied().take(limits::ENDS))
    {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}
