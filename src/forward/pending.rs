//! Pending results of segments, separate from their texts' state until commit.

use crate::{
    Result,
    backend::{Buffer, Memory},
    format::CacheType,
    model::Config,
};

/// Maximum tokens of a decode segment: one and a draft of seven.
pub const DECODE_TOKENS: usize = 8;

/// Pending results of a segment in every layer, in its text's cache type, which may differ between segments.
pub(super) struct Pending {
    pub(super) cache: CacheType,
    /// Capacity in tokens.
    pub(super) rows: usize,
    has_inputs: bool,
    pub(super) layers: Vec<PendingLayer>,
}

/// Pending results of a segment in a layer.
pub(super) struct PendingLayer {
    /// Keys and values of its tokens, in producers.
    pub(super) kv: Option<[Buffer; 2]>,
    /// The convolution's state after its last token.
    pub(super) conv: Buffer,
    /// The SSM's state after its last token.
    pub(super) ssm: Buffer,
    /// In a decode segment of several tokens, the Mamba heads' inputs: if only some tokens are committed, the states
    /// are recomputed from them.
    pub(super) inputs: Option<MambaInputs>,
}

/// The Mamba heads' inputs for each token of a decode segment.
pub(super) struct MambaInputs {
    /// The convolution's input `[tokens, inner]`.
    pub(super) conv: Buffer,
    /// Δ before bias and softplus `[tokens, inner]`.
    pub(super) dt: Buffer,
    /// The convolution's output `[tokens, inner]`.
    pub(super) u: Buffer,
    /// B `[tokens, state]`.
    pub(super) b: Buffer,
}

impl Pending {
    /// Returns buffers for segments of up to `rows` tokens.
    pub(super) fn new(memory: &dyn Memory, c: &Config, rows: usize, cache: CacheType) -> Result<Self> {
        let alloc = |dim| memory.kv_rows(cache, rows, c.kv_heads, dim);
        let layer = |layer| {
            Ok(PendingLayer {
                kv: c.is_producer(layer).then(|| Ok([alloc(c.key_dim)?, alloc(c.value_dim)?])).transpose()?,
                conv: memory.zeros((c.conv_kernel - 1) * c.inner)?,
                ssm: memory.zeros(c.inner * c.state)?,
                inputs: None,
            })
        };
        let layers = (0..c.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { cache, rows, has_inputs: false, layers })
    }

    /// Whether it has capacity for `rows` tokens of a text with this cache type.
    pub(super) fn holds(&self, rows: usize, cache: CacheType) -> bool {
        self.rows >= rows && self.cache == cache
    }

    /// Allocates buffers for the Mamba heads' inputs, if missing.
    pub(super) fn ensure_inputs(&mut self, memory: &dyn Memory, c: &Config) -> Result<()> {
        if !self.has_inputs {
            let alloc = |width| memory.zeros(DECODE_TOKENS * width);
            for layer in &mut self.layers {
                let [conv, dt, u] = [alloc(c.inner)?, alloc(c.inner)?, alloc(c.inner)?];
                layer.inputs = Some(MambaInputs { conv, dt, u, b: alloc(c.state)? });
            }
            self.has_inputs = true;
        }
        Ok(())
    }
}
