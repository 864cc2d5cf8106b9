//! What a session remembers: KV rows, conv state, SSM state.

mod disk;
mod image;
mod kv;
mod meta;
mod snapshot;

use crate::{
    Result,
    backend::{Backend, Kind},
    model::Config,
};

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
    pub fn new<B: Backend<Memory = M>>(backend: &B, config: &Config, context: usize, kind: Kind) -> Result<Self> {
        let mut bytes = 0usize;
        let mut zeros = |kind: Kind, len: Option<usize>| {
            // a length that overflows fails in `zeros`, with the message for too little memory
            let len = len.unwrap_or(usize::MAX);
            bytes = bytes.saturating_add(kind.size(len));
            backend.zeros(kind, len)
        };
        let (k_width, v_width) = config.kv_widths();
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let kv = if config.is_producer(layer) {
                let layout = KvLayout::new(config, layer, context);
                Some(KvCache {
                    layout,
                    k: zeros(kind, layout.rows().checked_mul(k_width))?,
                    v: zeros(kind, layout.rows().checked_mul(v_width))?,
                })
            } else {
                None
            };
            let conv = zeros(Kind::F32, Some((config.conv_kernel - 1) * config.inner))?;
            let ssm = zeros(Kind::F32, Some(config.inner * config.state))?;
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
