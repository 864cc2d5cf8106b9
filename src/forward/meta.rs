//! The pass over the meta tokens. The state after it depends on the weights alone; sessions start from it.

use std::sync::atomic::AtomicBool;

use super::{CHUNK, Chunk, Input, Observer, Phase, Scratch, ScratchSize, Segment};
use crate::{
    Result,
    backend::Memory,
    format::CacheType,
    model::{Config, Weights},
    state::{MetaState, State},
};

/// Computes the state after the meta tokens.
pub struct MetaPass<'a> {
    /// Executes the operations.
    pub backend: &'a mut dyn Memory,
    /// The model's sizes.
    pub config: &'a Config,
    /// Its weights.
    pub weights: &'a Weights,
    /// Cancels the pass when set; checked several times per layer.
    pub cancel: Option<&'a AtomicBool>,
}

impl MetaPass<'_> {
    /// Returns the state after the meta tokens; `observe` receives the outputs of every layer.
    ///
    /// # Panics
    /// If the model has no meta tokens.
    pub fn run(self, mut observe: Option<Observer<'_>>) -> Result<MetaState> {
        let Self { backend, config, weights, cancel } = self;
        let Some(table) = &weights.meta_embd else {
            panic!("a model without meta tokens has no state after them");
        };
        let mut state = State::new(backend, config, 0, CacheType::F32)?;
        let size = ScratchSize { config, rows: CHUNK.min(table.rows), cache: CacheType::F32 };
        let mut scratch = Scratch::new(backend, size)?;
        let all: Vec<u32> = (0..table.rows as u32).collect();
        for ids in all.chunks(CHUNK) {
            let observe: Option<Observer<'_>> = match &mut observe {
                Some(observe) => Some(*observe),
                None => None,
            };
            let tokens = ids.len();
            let (state, phase) = (&mut state, Phase::Prefill);
            let segment = Segment { state, tokens, phase, logits: 0..0, cancel, failed: None };
            let segments = &mut [segment];
            scratch.prepare(backend, config, segments)?;
            let mut chunk = Chunk { backend, config, segments, scratch: &mut scratch };
            chunk.forward(weights, Input { ids, observe })?;
            if let Some(error) = chunk.segments[0].failed.take() {
                return Err(error);
            }
            chunk.commit(weights, 0, tokens);
            backend.finish()?;
        }
        Ok(MetaState::take(backend, config, &state))
    }
}
