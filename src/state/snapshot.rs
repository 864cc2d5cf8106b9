//! A point to come back to. Rows of global layers stay where they are: the text after the point only adds to them. What
//! the text overwrites is copied: the rings of windowed layers, conv and SSM state.

use super::State;
use crate::{
    Result,
    backend::{Backend, Kind},
    model::Config,
};

/// What a session must put back to be where it was, in memory `M`. It is good for as long as the text before the point
/// is the same.
pub struct Snapshot<M> {
    position: usize,
    layers: Vec<LayerSnapshot<M>>,
}

struct LayerSnapshot<M> {
    ring: Option<[M; 2]>,
    conv: M,
    ssm: M,
}

impl<M> State<M> {
    /// The point where the text ends now.
    pub fn snapshot<B: Backend<Memory = M>>(&self, b: &mut B, c: &Config, kind: Kind) -> Result<Snapshot<M>> {
        let (k_width, v_width) = c.kv_widths();
        let mut copy = |kind: Kind, from: &M, rows: usize, width: usize| {
            let mut to = b.zeros(kind, rows * width)?;
            b.copy_rows((from, 0), (&mut to, 0), rows, width);
            Ok::<_, crate::Error>(to)
        };
        let layers = self.layers.iter().map(|layer| {
            let ring = layer.kv.as_ref().filter(|kv| kv.layout.is_ring());
            let ring = ring.map(|kv| {
                let rows = kv.layout.rows();
                Ok::<_, crate::Error>([copy(kind, &kv.k, rows, k_width)?, copy(kind, &kv.v, rows, v_width)?])
            });
            Ok(LayerSnapshot {
                ring: ring.transpose()?,
                conv: copy(Kind::F32, &layer.conv, c.conv_kernel - 1, c.inner)?,
                ssm: copy(Kind::F32, &layer.ssm, c.inner, c.state)?,
            })
        });
        Ok(Snapshot { position: self.position, layers: layers.collect::<Result<_>>()? })
    }

    /// Goes back to the point.
    ///
    /// # Panics
    /// If the text is shorter than it was at the point.
    pub fn restore<B: Backend<Memory = M>>(&mut self, b: &mut B, c: &Config, from: &Snapshot<M>) {
        assert!(self.position >= from.position, "the text ends before the point to go back to");
        let (k_width, v_width) = c.kv_widths();
        for (layer, saved) in self.layers.iter_mut().zip(&from.layers) {
            if let (Some(kv), Some([k, v])) = (&mut layer.kv, &saved.ring) {
                let rows = kv.layout.rows();
                b.copy_rows((k, 0), (&mut kv.k, 0), rows, k_width);
                b.copy_rows((v, 0), (&mut kv.v, 0), rows, v_width);
            }
            b.copy_rows((&saved.conv, 0), (&mut layer.conv, 0), c.conv_kernel - 1, c.inner);
            b.copy_rows((&saved.ssm, 0), (&mut layer.ssm, 0), c.inner, c.state);
        }
        self.position = from.position;
    }
}
