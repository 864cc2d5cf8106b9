//! Calibration text.

use std::sync::atomic::AtomicBool;

use crate::{Error, Result, format::gguf::Metadata, text::Tokenizer};

/// A calibration text.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The text.
    pub text: String,
    /// Its name in messages.
    pub name: String,
    /// Maximum number of tokens, sampled evenly in sequences.
    pub tokens: usize,
    /// Length of a sequence in tokens, BOS included. Sequences are independent texts.
    pub context: usize,
}

impl Sample {
    /// Tokenizes the text with the tokenizer in `metadata` and returns the sequences; `file` is the model's name for
    /// messages.
    pub(in crate::quant) fn pieces(
        &self,
        metadata: &Metadata,
        file: &str,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<u32>>> {
        let tokenizer = Tokenizer::from_metadata_until(metadata, file, cancel)?;
        let bos: Vec<u32> = tokenizer.bos().into_iter().collect();
        let ids = tokenizer.encode_until(&self.text, false, cancel)?;
        let run = (self.context - bos.len()).max(1);
        let all: Vec<&[u32]> = ids.chunks_exact(run).collect();
        if all.is_empty() {
            return Err(Error::format(
                &self.name,
                format!("has {} tokens; calibration needs at least {run}", ids.len()),
            ));
        }
        let wanted = (self.tokens / self.context).clamp(1, all.len());
        Ok((0..wanted).map(|i| [&bos, all[i * all.len() / wanted]].concat()).collect())
    }
}
