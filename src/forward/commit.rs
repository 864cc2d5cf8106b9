//! Commit: what a segment has computed becomes part of its text's state.

use std::mem::swap;

use super::Chunk;
use crate::{
    backend::{Carried, MatRef, Op, ScanInput, ScanWeights},
    model::{Weights, weights::Layer},
};

impl Chunk<'_, '_> {
    /// Makes the first `accepted` tokens of segment `i` part of its text, the others never were. To be called once after
    /// [`Chunk::forward`], or not at all. What is enqueued may not be executed yet.
    ///
    /// # Panics
    /// If the segment was given up, or has not as many tokens, or is a prefill segment and they are neither all nor none.
    pub fn commit(&mut self, weights: &Weights, i: usize, accepted: usize) {
        if accepted > 0 {
            weights.layers.iter().enumerate().for_each(|(index, layer)| self.commit_layer((index, layer), i, accepted));
            self.segments[i].state.position += accepted;
        }
    }

    /// [`Chunk::commit`] of one layer; the state's position stays.
    pub fn commit_layer(&mut self, (index, w): (usize, &Layer), i: usize, accepted: usize) {
        let segment = &mut self.segments[i];
        assert!(segment.failed.is_none(), "a segment that was given up is not committed");
        let whole = accepted == segment.tokens;
        assert!(whole || (segment.is_divisible() && accepted < segment.tokens), "prefill is committed as a whole");
        // Not before all layers are done: a ring's oldest rows make way for the newest, and the first tokens, in
        // consumers too, still see them.
        let position = segment.state.position;
        if !whole {
            self.recompute((index, w), i, accepted);
        }
        let state = &mut self.segments[i].state.layers[index];
        let pending = &mut self.scratch.pending[i].layers[index];
        let (k_width, v_width) = self.config.kv_widths();
        if let (Some(cache), Some([k, v])) = (&mut state.kv, &pending.kv) {
            for (from, to, rows) in cache.layout.places(position, accepted) {
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
        let Some(inputs) = &pending.inputs else { unreachable!("the inputs of a decode segment are kept") };
        let past = c.conv_kernel - 1;
        let old = past.saturating_sub(tokens); // inputs before the segment that are still among the last
        let mut copy = |from, to, rows| {
            b.run(Op::CopyRows { from, to: (&mut pending.conv, to), rows, width: c.inner });
        };
        copy((&state.conv, past - old), 0, old);
        copy((&inputs.conv, tokens - (past - old)), old, past - old);
        let rows = |buffer, cols: usize| MatRef { buffer, rows: tokens, start: 0, cols, stride: cols };
        let u = rows(&inputs.u, c.inner);
        let states: MatRef<'_> = rows(&inputs.b, c.state);
        // What comes out was computed already: neither gate nor C matters.
        let input = ScanInput { dt: rows(&inputs.dt, c.inner), u, gate: u, b: states, c: states };
        let weights = ScanWeights { dt_bias: &w.dt_bias, a: &w.a, d: &w.d };
        let carried = Carried { from: &state.ssm, to: &mut pending.ssm };
        b.run(Op::Scan { input, weights, state: carried, out: self.scratch.mamba.all_mut(tokens) });
    }
}
