//! A checkpoint of the state. Rows of global layers stay where they are: the text after it only adds to them. What the
//! text overwrites is copied: the rings of windowed layers, conv and SSM state. A checkpoint with global layers holds
//! their rows too, and can be restored after any other text.

use super::State;
use crate::{
    Result,
    backend::{Buffer, Memory, Op},
    format::CacheType,
    model::Config,
};

/// What must be put back to continue where the text was. Without the rows of global layers it is good for as long as the
/// text before it stays the same.
pub struct Checkpoint {
    position: usize,
    with_global_layers: bool,
    bytes: usize,
    layers: Vec<LayerCheckpoint>,
}

struct LayerCheckpoint {
    /// Rows of text; those of the meta tokens never change.
    kv: Option<[Buffer; 2]>,
    conv: Buffer,
    ssm: Buffer,
}

impl Checkpoint {
    /// Returns the bytes of memory that it takes.
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
    /// Returns a checkpoint of the text as it is now.
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

    /// Goes back to a checkpoint.
    ///
    /// # Panics
    /// If the text is shorter than it was there, and the checkpoint is without global layers.
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
