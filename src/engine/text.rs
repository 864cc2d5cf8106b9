//! The state of one text in a batch.

use crate::{Error, Result, backend::Memory, format::CacheType, model::Config, state::State};

/// A text being processed: the state after its tokens. Passes over it go through the [`Batch`](super::Batch) that it
/// belongs to.
pub struct Text {
    pub(super) state: State,
    context: usize,
    meta: usize,
}

impl Text {
    /// Returns a text in the initial state, before the meta tokens.
    pub(super) fn new(memory: &dyn Memory, config: &Config, context: usize, cache: CacheType) -> Result<Self> {
        let block = cache.dtype().block_len();
        let (key_dim, value_dim) = (config.key_dim, config.value_dim);
        if !key_dim.is_multiple_of(block) || !value_dim.is_multiple_of(block) {
            return Err(Error::CacheTypeWidth { cache: cache.name(), key_dim, value_dim, block });
        }
        Ok(Self { state: State::new(memory, config, context, cache)?, context, meta: config.meta_tokens })
    }

    /// Returns the number of tokens processed.
    pub fn tokens(&self) -> usize {
        self.state.position - self.meta
    }

    /// Returns the context size in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns the KV cache type.
    pub fn cache_type(&self) -> CacheType {
        self.state.cache
    }

    /// Returns the size of the KV cache, conv and SSM state in bytes.
    pub fn bytes(&self) -> usize {
        self.state.bytes
    }

    /// Fails unless `needed` more tokens fit.
    pub fn check_fits(&self, needed: usize) -> Result<()> {
        let (context, free) = (self.context, self.context - self.tokens());
        if needed > free { Err(Error::ContextFull { needed, free, context }) } else { Ok(()) }
    }
}
