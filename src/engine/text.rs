//! A text in a batch: what it has left behind.

use crate::{Error, Result, backend::Memory, format::CacheType, model::Config, state::State};

/// A text being read: the state after its tokens. What it reads next goes through the [`Batch`](super::Batch) whose it is.
pub struct Text {
    pub(super) state: State,
    context: usize,
    meta: usize,
}

impl Text {
    /// Nothing is read yet, not even the meta tokens.
    pub(super) fn new(memory: &dyn Memory, config: &Config, context: usize, cache: CacheType) -> Result<Self> {
        let block = cache.dtype().block_len();
        let (key_dim, value_dim) = (config.key_dim, config.value_dim);
        if !key_dim.is_multiple_of(block) || !value_dim.is_multiple_of(block) {
            return Err(Error::CacheTypeWidth { cache: cache.name(), key_dim, value_dim, block });
        }
        Ok(Self { state: State::new(memory, config, context, cache)?, context, meta: config.meta_tokens })
    }

    /// Returns how many tokens are read.
    pub fn tokens(&self) -> usize {
        self.state.position - self.meta
    }

    /// Returns how many tokens fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns how keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.state.cache
    }

    /// Returns the bytes of keys, values, conv and SSM state.
    pub fn bytes(&self) -> usize {
        self.state.bytes
    }

    /// Fails unless `needed` more tokens fit.
    pub fn check_room(&self, needed: usize) -> Result<()> {
        let (context, free) = (self.context, self.context - self.tokens());
        if needed > free { Err(Error::ContextFull { needed, free, context }) } else { Ok(()) }
    }
}
