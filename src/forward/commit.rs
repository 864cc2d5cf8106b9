//! Commit: a segment's results become part of its text's state.

use std::mem::swap;

use super::Chunk;
use crate::{
    backend::{MatRef, Op, ScanInput, ScanWeights, StateUpdate},
    model::{Weights, weights::Layer},
};

impl Chunk<'_, '_> {
    /// Commits the first `accepted` tokens of segment `i` to its text and drops the others. To be called at most once
    /// after [`Chunk::forward`]. On a GPU, enqueued work may still be running.
    ///
    /// # Panics
    /// If the segment failed, has fewer tokens, or is a prefill segment and `accepted` is neither all nor none.
    pub fn commit(&mut self, weights: &Weights, i: usize, accepted: usize) {
        if accepted > 0 {
            weights.layers.iter().enumerate().for_each(|(index, layer)| self.commit_layer((index, layer), i, accepted));
            self.segments[i].state.position += accepted;
        }
    }

    /// [`Chunk::commit`] of one layer; the state's position stays.
    pub fn commit_layer(&mut self, (index, w): (usize, &Layer), i: usize, accepted: usize) {
        let segment = &mut self.segments[i];
        assert!(segment.failed.is_none(), "a failed segment cannot be committed");
        let all_accepted = accepted == segment.tokens;
        assert!(
            all_accepted || (segment.is_divisible() && accepted < segment.tokens),
            "prefill is committed as a whole"
        );
        // Only after all layers: the newest rows replace a ring's oldest, which the first tokens still see, also in
        // consumers.
        let position = segment.state.position;
        if !all_accepted {
            self.recompute((index, w), i, accepted);
        }
        let state = &mut self.segments[i].state.layers[index];
        let pending = &mut self.scratch.pending[i].layers[index];
        let (k_width, v_width) = self.config.kv_widths();
        if let (Some(cache), Some([k, v])) = (&mut state.kv, &pending.kv) {
            for (from, to, rows) in cache.layout.copy_ranges(position, accepted) {
                self.backend.run(Op::CopyRows { from: (k, from), to: (&mut cache.k, to), rows, width: k_width });
                self.backend.run(Op::CopyRows { from: (v, from), to: (&mut cache.v, to), rows, width: v_width });
            }
        }
        swap(&mut state.conv, &mut pending.conv);
        swap(&mut state.ssm, &mut pending.ssm);
    }

    /// Computes conv and SSM state after the first `tokens` of a decode segment.
    fn recompute(&mut self, (index, w): (usize, &Layer), i: usize, tokens: usize) {
        let (b, c) = (&mut *self.backend, self.config);
        let (state, pending) = (&self.segments[i].state.layers[index], &mut self.scratch.pending[i].layers[index]);
        let Some(inputs) = &pending.inputs else { unreachable!("a decode segment keeps its inputs") };
        let past = c.conv_kernel - 1;
        let old = past.saturating_sub(tokens); // earlier inputs that remain in the state
        let mut copy = |from, to, rows| {
            b.run(Op::CopyRows { from, to: (&mut pending.conv, to), rows, width: c.inner });
        };
        copy((&state.conv, past - old), 0, old);
        copy((&inputs.conv, tokens - (past - old)), old, past - old);
        let rows = |buffer, cols: usize| MatRef { buffer, rows: tokens, start: 0, cols, stride: cols };
        let u = rows(&inputs.u, c.inner);
        let states: MatRef<'_> = rows(&inputs.b, c.state);
        // The outputs were computed before: neither gate nor C matters.
        let input = ScanInput { dt: rows(&inputs.dt, c.inner), u, gate: u, b: states, c: states };
        let weights = ScanWeights { dt_bias: &w.dt_bias, a: &w.a, d: &w.d };
        let carried = StateUpdate { from: &state.ssm, to: &mut pending.ssm };
        b.run(Op::Scan { input, weights, state: carried, out: self.scratch.mamba.all_mut(tokens) });
    }
}
