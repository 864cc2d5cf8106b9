//! Flags for speculative decoding.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use hymba::{
    engine::speculate::{Speculate, Speculator},
    text::Tokenizer,
};

use super::{prompt::read_text, usage::Usage, wording::grouped};

/// The draft policy.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct DraftArgs {
    /// Speculative decoding: draft tokens from earlier text and verify several per pass; the output does not change.
    /// auto: when it is faster; K: always up to K tokens (1 to 7)
    #[arg(long, value_name = "auto|off|K", default_value = "auto", value_parser = speculate)]
    pub speculate: Speculate,
}

/// Speculative decoding.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculateArgs {
    #[command(flatten)]
    pub drafts: DraftArgs,
    /// Also draft from the text in FILE, without adding it to the context; repeatable
    #[arg(long, value_name = "FILE")]
    draft_from: Vec<PathBuf>,
}

/// Maximum number of tokens of the files.
const FILE_TOKENS: usize = 1 << 18;

fn speculate(text: &str) -> Result<Speculate, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Speculate::Auto),
        ("off", _) => Ok(Speculate::Off),
        (_, Ok(guesses @ 1..=Speculate::MAX)) => Ok(Speculate::Fixed(guesses)),
        _ => Err(format!("must be `auto`, `off` or a number of tokens from 1 to {}", Speculate::MAX)),
    }
}

impl SpeculateArgs {
    /// Fails if there are reference texts, which --batch does not support.
    pub fn check_batch(&self) -> Result<(), Usage> {
        match self.draft_from.is_empty() {
            true => Ok(()),
            false => Err(Usage("--draft-from cannot be used with --batch; leave it out".into())),
        }
    }

    /// Returns a speculator with these options.
    pub fn speculator(&self, tokenizer: &Tokenizer, cancel: &AtomicBool) -> anyhow::Result<Speculator> {
        let mut speculator = Speculator::new(self.drafts.speculate);
        if !speculator.is_on() {
            return Ok(speculator);
        }
        let mut left = FILE_TOKENS;
        for path in &self.draft_from {
            let text = read_text(path, cancel)?;
            let too_long = || {
                let max = grouped(FILE_TOKENS);
                Usage(format!("--draft-from {}: the files have more than {max} tokens; shorten them", path.display()))
            };
            if tokenizer.least_tokens(&text) > left {
                return Err(too_long().into());
            }
            let ids = tokenizer.encode(&text, false)?;
            left = left.checked_sub(ids.len()).ok_or_else(too_long)?;
            speculator.add_text(&ids);
        }
        Ok(speculator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_automatic_off_or_of_a_length() {
        for (text, speculate_so) in [
            ("auto", Some(Speculate::Auto)),
            ("off", Some(Speculate::Off)),
            ("1", Some(Speculate::Fixed(1))),
            ("7", Some(Speculate::Fixed(7))),
            ("0", None),
            ("8", None),
            ("on", None),
            ("", None),
        ] {
            assert_eq!(speculate(text).ok(), speculate_so, "{text}");
        }
    }
}
