//! Checkpoints of the state. Rows of global layers stay in place, since later text only appends to them. State that is
//! overwritten is copied: the rings of windowed layers, conv and SSM state. A checkpoint with global layers also copies
//! their rows, and can be restored after any other text.

use super::State;
use crate::{
    Result,
    backend::{Buffer, Memory, Op},
    format::CacheType,
    model::Config,
};

/// A checkpoint. Without the rows of global layers it is valid while the text before it is unchanged.
pub struct Checkpoint {
    position: usize,
    with_global_layers: bool,
    bytes: usize,
    layers: Vec<LayerCheckpoint>,
}

struct LayerCheckpoint {
    /// Text rows; those of the meta tokens never change.
    kv: Option<[Buffer; 2]>,
    conv: Buffer,
    ssm: Buffer,
}

impl Checkpoint {
    /// Returns its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Copies `rows` rows of `width` values from row `first` of `from` into `to`.
fn copied(
    memory: &mut dyn Memory,
    (from, first): (&Buffer, usize),
    mut to: Buffer,
    [rows, width]: [usize; 2],
) -> Buffer {
    memory.run(Op::CopyRows { from: (from, first), to: (&mut to, 0), rows, width });
    to
}

impl State {
    /// Returns a checkpoint of the current state.
    pub fn checkpoint(
        &self,
        memory: &mut dyn Memory,
        c: &Config,
        cache: CacheType,
        with_global_layers: bool,
    ) -> Result<Checkpoint> {
        let mut bytes = 0;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let kv = match &layer.kv {
                Some(kv) if with_global_layers || kv.layout.is_ring() => {
                    let rows = kv.layout.text_rows(self.position);
                    let mut copy = |from, dim| {
                        let to = memory.kv_rows(cache, rows.len(), c.kv_heads, dim)?;
                        bytes += cache.size(rows.len() * c.kv_heads * dim);
                        Ok(copied(memory, (from, rows.start), to, [rows.len(), c.kv_heads * dim]))
                    };
                    Some([copy(&kv.k, c.key_dim)?, copy(&kv.v, c.value_dim)?])
                }
                _ => None,
            };
            let mut copy = |from, rows, width| {
                let to = memory.zeros(rows * width)?;
                bytes += CacheType::F32.size(rows * width);
                Ok(copied(memory, (from, 0), to, [rows, width]))
            };
            let conv = copy(&layer.conv, c.conv_kernel - 1, c.inner)?;
            layers.push(LayerCheckpoint { kv, conv, ssm: copy(&layer.ssm, c.inner, c.state)? });
        }
        Ok(Checkpoint { position: self.position, with_global_layers, bytes, layers })
    }

    /// Restores a checkpoint.
    ///
    /// # Panics
    /// If the text is shorter than at the checkpoint and the checkpoint has no global layers.
    pub fn restore(&mut self, memory: &mut dyn Memory, c: &Config, from: &Checkpoint) {
        assert!(from.with_global_layers || self.position >= from.position, "the text ends before the checkpoint");
        let (k_width, v_width) = c.kv_widths();
        let mut copy = |from, to: (&mut Buffer, usize), rows, width| {
            memory.run(Op::CopyRows { from: (from, 0), to, rows, width });
        };
        for (layer, saved) in self.layers.iter_mut().zip(&from.layers) {
            if let (Some(kv), Some([k, v])) = (&mut layer.kv, &saved.kv) {
                let rows = kv.layout.text_rows(from.position);
                copy(k, (&mut kv.k, rows.start), rows.len(), k_width);
                copy(v, (&mut kv.v, rows.start), rows.len(), v_width);
            }
            copy(&saved.conv, (&mut layer.conv, 0), c.conv_kernel - 1, c.inner);
            copy(&saved.ssm, (&mut layer.ssm, 0), c.inner, c.state);
        }
        self.position = from.position;
    }
}
