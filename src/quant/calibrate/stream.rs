//! Layer-by-layer evaluation of texts: keeps the residual stream, so that only the current layer has to be in memory.

use std::num::NonZeroUsize;

use crate::{
    Result,
    backend::{Backend, Buffer, Cpu, MatRef, Memory, Op, Watched},
    format::{CacheType, Matrix, Vector},
    forward::{Chunk, Phase, Scratch, ScratchSize, Segment},
    model::{Config, Plan, weights::Layer},
    state::State,
};

/// Whether a pass through a layer advances the texts.
#[derive(Clone, Copy, PartialEq)]
pub enum Advance {
    /// The texts stay before the layer.
    Peek,
    /// The texts move past the layer.
    Commit,
}

/// Texts that have been processed up to a layer.
pub struct Stream<'a> {
    config: &'a Config,
    plan: Plan,
    backend: Cpu,
    state: State,
    scratch: Scratch,
    /// The residual stream `[tokens, hidden]` of the meta tokens, if there are any, then of each text.
    hidden: Vec<Vec<f32>>,
    /// The KV rows of each, for producers with consumers among the remaining layers.
    kv: Vec<Vec<[Buffer; 2]>>,
}

impl<'a> Stream<'a> {
    /// Returns a stream of `texts`, given as token ids, before the first layer.
    pub fn new(
        config: &'a Config,
        embeddings: &Matrix,
        meta: Option<&Matrix>,
        texts: &[Vec<u32>],
        threads: NonZeroUsize,
    ) -> Result<Self> {
        let backend = Cpu::new(threads);
        let rows = |table: &Matrix, ids: &[u32]| {
            let mut hidden = vec![0.0; ids.len() * table.cols];
            hidden.chunks_exact_mut(table.cols).zip(ids).for_each(|(row, &id)| table.row(id as usize, row));
            hidden
        };
        let meta_ids: Vec<u32> = (0..config.meta_tokens as u32).collect();
        let mut hidden: Vec<_> = meta.into_iter().map(|meta| rows(meta, &meta_ids)).collect();
        hidden.extend(texts.iter().map(|ids| rows(embeddings, ids)));
        let rows = hidden.iter().map(|h| h.len() / config.hidden).max().unwrap_or(0);
        Ok(Self {
            plan: Plan::new(config),
            state: State::new(&backend, config, 0, CacheType::F16)?,
            scratch: Scratch::new(&backend, ScratchSize { config, rows, cache: CacheType::F16 })?,
            kv: (0..config.layers).map(|_| Vec::new()).collect(),
            config,
            backend,
            hidden,
        })
    }

    /// Returns the number of texts; the meta tokens count as one.
    pub fn texts(&self) -> usize {
        self.hidden.len()
    }

    /// Runs all texts through layer `index` with the weights `layer`. `done` is called after every text; its error ends
    /// the pass.
    pub fn pass(
        &mut self,
        index: usize,
        layer: &Layer,
        advance: Advance,
        watch: &mut dyn FnMut(&Matrix, MatRef<'_>),
        done: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let c = self.config;
        let source = c.kv_source[index];
        let has_readers = !self.plan.layers[index].readers.is_empty();
        self.state.position = 0;
        // Only the meta tokens are committed, since every text follows them.
        let memory = &mut self.state.layers[index];
        self.backend.clear(&mut memory.conv);
        self.backend.clear(&mut memory.ssm);
        for text in 0..self.hidden.len() {
            let tokens = self.hidden[text].len() / c.hidden;
            self.backend.upload(&self.hidden[text], self.scratch.hidden_mut(), 0);
            if source != index
                && let Some(kv) = self.scratch.kv_mut(source)
            {
                std::mem::swap(kv, &mut self.kv[source][text]);
            }
            let (state, phase) = (&mut self.state, Phase::Prefill);
            let segments = &mut [Segment { state, tokens, phase, logits: 0..0, cancel: None, failed: None }];
            self.scratch.prepare(&self.backend, c, segments)?;
            let mut backend = Watched { inner: &mut self.backend, watch: &mut *watch };
            let mut chunk = Chunk { backend: &mut backend, config: c, segments, scratch: &mut self.scratch };
            chunk.single_layer(index, layer)?;
            if c.meta_tokens > 0 && text == 0 {
                chunk.commit_layer((index, layer), 0, tokens);
                self.state.position = tokens;
            }
            if source != index
                && let Some(kv) = self.scratch.kv_mut(source)
            {
                std::mem::swap(kv, &mut self.kv[source][text]);
            }
            if advance == Advance::Commit {
                self.hidden[text] = self.backend.download(self.scratch.hidden_mut(), tokens * c.hidden);
                if has_readers && let Some(kv) = self.scratch.kv_mut(index) {
                    let (k, v) = c.kv_widths();
                    let alloc = |dim| self.backend.kv_rows(CacheType::F16, tokens, c.kv_heads, dim);
                    let mut copy = [alloc(c.key_dim)?, alloc(c.value_dim)?];
                    for (copy, (kv, width)) in copy.iter_mut().zip(kv.iter().zip([k, v])) {
                        self.backend.run(Op::CopyRows { from: (kv, 0), to: (copy, 0), rows: tokens, width });
                    }
                    self.kv[index].push(copy);
                }
            }
            done()?;
        }
        if advance == Advance::Commit && self.plan.layers[source].readers.iter().max() == Some(&index) {
            self.kv[source].clear();
        }
        Ok(())
    }

    /// Returns the inputs of the output matrix: the texts after the last layer, normed by `norm`, without meta tokens.
    pub fn head_inputs(&self, norm: &Vector, watch: &mut dyn FnMut(MatRef<'_>)) {
        let c = self.config;
        for hidden in &self.hidden[usize::from(c.meta_tokens > 0)..] {
            let mut rows = hidden.clone();
            for row in rows.chunks_exact_mut(c.hidden) {
                let square = row.iter().map(|v| v * v).sum::<f32>() / c.hidden as f32;
                let scale = 1.0 / (square + c.rms_eps).sqrt();
                row.iter_mut().zip(&**norm).for_each(|(v, gain)| *v *= scale * gain);
            }
            let buffer = Buffer::F32(rows);
            let rows = hidden.len() / c.hidden;
            watch(MatRef { buffer: &buffer, rows, start: 0, cols: c.hidden, stride: c.hidden });
        }
    }
}
