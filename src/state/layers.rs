//! The state of all layers.

use super::{KvCache, KvLayout};
use crate::{
    Result,
    backend::{Buffer, Memory},
    format::CacheType,
    model::Config,
};

/// The state of one layer.
pub struct LayerState {
    /// Keys and values, in producers.
    pub kv: Option<KvCache>,
    /// The convolution's last inputs `[conv_kernel − 1, inner]`, oldest first.
    pub conv: Buffer,
    /// The SSM's state `[inner, state]`.
    pub ssm: Buffer,
}

/// The state of all layers after `position` positions.
pub struct State {
    /// One per layer.
    pub layers: Vec<LayerState>,
    /// The KV cache type.
    pub cache: CacheType,
    /// Positions processed so far, including meta tokens.
    pub position: usize,
    /// Bytes of all of it.
    pub bytes: usize,
}

impl State {
    /// Returns an empty state for the meta tokens and `context` tokens of text.
    pub fn new(memory: &dyn Memory, c: &Config, context: usize, cache: CacheType) -> Result<Self> {
        let mut bytes = 0usize;
        let mut count = |cache: CacheType, rows: usize, width: usize| {
            bytes = bytes.saturating_add(cache.size(rows.saturating_mul(width)));
        };
        let mut layers = Vec::with_capacity(c.layers);
        for layer in 0..c.layers {
            let kv = if c.is_producer(layer) {
                let layout = KvLayout::new(c, layer, context);
                let mut alloc = |dim| {
                    count(cache, layout.rows(), c.kv_heads * dim);
                    memory.kv_rows(cache, layout.rows(), c.kv_heads, dim)
                };
                Some(KvCache { layout, k: alloc(c.key_dim)?, v: alloc(c.value_dim)? })
            } else {
                None
            };
            let mut zeros = |rows, width| {
                count(CacheType::F32, rows, width);
                memory.zeros(rows * width)
            };
            let (conv, ssm) = (zeros(c.conv_kernel - 1, c.inner)?, zeros(c.inner, c.state)?);
            layers.push(LayerState { kv, conv, ssm });
        }
        Ok(Self { layers, cache, position: 0, bytes })
    }

    /// Resets to the state before the first token.
    pub fn clear(&mut self, memory: &mut dyn Memory) {
        self.position = 0; // KV rows beyond the position are never read
        for layer in &mut self.layers {
            memory.clear(&mut layer.conv);
            memory.clear(&mut layer.ssm);
        }
    }
}
