//! A point to come back to. Rows of global layers stay where they are: the text after the point only adds to them. What
//! the text overwrites is copied: the rings of windowed layers, conv and SSM state. A whole snapshot copies the rows of
//! global layers too, and is good after any other text.

use super::State;
use crate::{Result, backend::Backend, format::CacheType, model::Config};

/// What a session must put back to be where it was, in memory `M`. Unless it is whole, it is good for as long as the
/// text before the point is the same.
pub struct Snapshot<M> {
    position: usize,
    whole: bool,
    bytes: usize,
    layers: Vec<LayerSnapshot<M>>,
}

struct LayerSnapshot<M> {
    /// Rows of text; those of the meta tokens never change.
    kv: Option<[M; 2]>,
    conv: M,
    ssm: M,
}

impl<M> Snapshot<M> {
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<M> State<M> {
    /// The point where the text ends now; `whole`: with the rows of global layers.
    pub fn snapshot<B: Backend<Memory = M>>(
        &self,
        b: &mut B,
        c: &Config,
        kind: CacheType,
        whole: bool,
    ) -> Result<Snapshot<M>> {
        let mut bytes = 0;
        let mut copy = |b: &mut B, to: Result<M>, kind: CacheType, from: (&M, usize), rows: usize, width: usize| {
            let mut to = to?;
            b.copy_rows(from, (&mut to, 0), rows, width);
            bytes += kind.size(rows * width);
            Ok::<_, crate::Error>(to)
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let kv = layer.kv.as_ref().filter(|kv| whole || kv.layout.is_ring()).map(|kv| {
                let rows = kv.layout.text_rows(self.position);
                let mut copy = |from, dim| {
                    let to = b.kv_rows(kind, rows.len(), c.kv_heads, dim);
                    copy(b, to, kind, (from, rows.start), rows.len(), c.kv_heads * dim)
                };
                Ok::<_, crate::Error>([copy(&kv.k, c.key_dim)?, copy(&kv.v, c.value_dim)?])
            });
            let kv = kv.transpose()?;
            let mut copy = |from, rows, width| {
                let to = b.zeros(rows * width);
                copy(b, to, CacheType::F32, (from, 0), rows, width)
            };
            let (conv, ssm) = (copy(&layer.conv, c.conv_kernel - 1, c.inner)?, copy(&layer.ssm, c.inner, c.state)?);
            layers.push(LayerSnapshot { kv, conv, ssm });
        }
        Ok(Snapshot { position: self.position, whole, bytes, layers })
    }

    /// Goes back to the point.
    ///
    /// # Panics
    /// If the text is shorter than it was at the point, and the snapshot is not whole.
    pub fn restore<B: Backend<Memory = M>>(&mut self, b: &mut B, c: &Config, from: &Snapshot<M>) {
        assert!(from.whole || self.position >= from.position, "the text ends before the point to go back to");
        let (k_width, v_width) = c.kv_widths();
        for (layer, saved) in self.layers.iter_mut().zip(&from.layers) {
            if let (Some(kv), Some([k, v])) = (&mut layer.kv, &saved.kv) {
                let rows = kv.layout.text_rows(from.position);
                b.copy_rows((k, 0), (&mut kv.k, rows.start), rows.len(), k_width);
                b.copy_rows((v, 0), (&mut kv.v, rows.start), rows.len(), v_width);
            }
            b.copy_rows((&saved.conv, 0), (&mut layer.conv, 0), c.conv_kernel - 1, c.inner);
            b.copy_rows((&saved.ssm, 0), (&mut layer.ssm, 0), c.inner, c.state);
        }
        self.position = from.position;
    }
}
