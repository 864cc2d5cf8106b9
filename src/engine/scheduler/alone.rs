//! A sequence that runs alone: the rows that others leave free in its passes verify draft tokens.

use std::sync::atomic::AtomicBool;

use crate::{
    Result,
    engine::{
        Batch,
        batch::{Read, Wanted},
        generate::TokenModel,
        text::Text,
    },
    forward::{DECODE_TOKENS, Phase},
};

/// One sequence of a batch.
pub(super) struct Alone<'a, 'm> {
    pub batch: &'a mut Batch<'m>,
    pub text: &'a mut Text,
    pub cancel: &'a AtomicBool,
}

impl Alone<'_, '_> {
    fn read(&mut self, ids: &[u32], phase: Phase) -> Result<&[f32]> {
        let Self { batch, text, cancel } = self;
        let mut pass = batch.run([Read { text, ids, phase, logits: Wanted::Last, cancel: Some(cancel) }])?;
        pass.logits(0)?;
        pass.commit(0, ids.len());
        drop(pass);
        Ok(self.batch.logits(0))
    }
}

impl TokenModel for Alone<'_, '_> {
    fn prefill(&mut self, ids: &[u32], _cancel: &AtomicBool) -> Result<&[f32]> {
        self.read(ids, Phase::Prefill)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.read(&[id], Phase::Decode)
    }

    fn tokens(&self) -> usize {
        self.text.tokens()
    }

    fn context(&self) -> usize {
        self.text.context()
    }

    fn most_guesses(&self) -> usize {
        (DECODE_TOKENS - 1).min((self.context() - self.tokens()).saturating_sub(1))
    }

    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        let vocab = self.batch.model().config().vocab;
        let Self { batch, text, cancel } = self;
        let read = Read { text, ids, phase: Phase::Decode, logits: Wanted::All, cancel: Some(cancel) };
        let mut pass = batch.run([read])?;
        // The failure may be caused by a draft token, which a single step would not process.
        let Ok(all) = pass.logits(0) else {
            drop(pass);
            return is_right(self.decode(ids[0])?).map(drop);
        };
        let (mut read, mut outcome) = (0, Ok(true));
        for logits in all.chunks(vocab) {
            (read, outcome) = (read + 1, is_right(logits));
            if !matches!(outcome, Ok(true)) {
                break;
            }
        }
        pass.commit(0, read);
        outcome.map(drop)
    }
}
