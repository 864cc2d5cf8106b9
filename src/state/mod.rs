//! What a session remembers: KV rows, conv state, SSM state.

mod disk;
mod image;
mod kv;
mod meta;
mod snapshot;

use crate::{Result, backend::Backend, format::CacheType, model::Config};

pub use disk::{read_session, write_session};
pub use image::image_bytes;
pub use kv::{KvCache, KvLayout};
pub use meta::MetaState;
pub use snapshot::Snapshot;

/// What one layer remembers, in memory `M`.
pub struct LayerState<M> {
    /// Keys and values, in layers that make them.
    pub kv: Option<KvCache<M>>,
    /// The convolution's last inputs `[conv_kernel − 1, inner]`, oldest first.
    pub conv: M,
    /// The SSM's state `[inner, state]`.
    pub ssm: M,
}

/// What all layers remember after `position` positions.
pub struct State<M> {
    /// One a layer.
    pub layers: Vec<LayerState<M>>,
    /// Positions read so far, meta tokens included.
    pub position: usize,
    /// Bytes of all of it.
    pub bytes: usize,
}

impl<M> State<M> {
    /// An empty state with room for the meta tokens and `context` tokens of text.
    pub fn new<B: Backend<Memory = M>>(backend: &B, c: &Config, context: usize, kind: CacheType) -> Result<Self> {
        let mut bytes = 0usize;
        let mut count = |kind: CacheType, rows: usize, width: usize| {
            bytes = bytes.saturating_add(kind.size(rows.saturating_mul(width)));
        };
        let mut layers = Vec::with_capacity(c.layers);
        for layer in 0..c.layers {
            let kv = if c.is_producer(layer) {
                let layout = KvLayout::new(c, layer, context);
                let mut room = |dim| {
                    count(kind, layout.rows(), c.kv_heads * dim);
                    backend.kv_rows(kind, layout.rows(), c.kv_heads, dim)
                };
                Some(KvCache { layout, k: room(c.key_dim)?, v: room(c.value_dim)? })
            } else {
                None
            };
            let mut zeros = |rows, width| {
                count(CacheType::F32, rows, width);
                backend.zeros(rows * width)
            };
            let (conv, ssm) = (zeros(c.conv_kernel - 1, c.inner)?, zeros(c.inner, c.state)?);
            layers.push(LayerState { kv, conv, ssm });
        }
        Ok(Self { layers, position: 0, bytes })
    }

    /// Forgets everything.
    pub fn clear<B: Backend<Memory = M>>(&mut self, backend: &mut B) {
        self.position = 0; // KV rows are read up to the position only
        for layer in &mut self.layers {
            backend.clear(&mut layer.conv);
            backend.clear(&mut layer.ssm);
        }
    }
}
