//! Attention of many tokens: the tokens of a task share each transposed row of keys.

use super::{Attention, Cpu, MatMut, Sequence, Shared, call, hk};

/// Queries per task: the maximum of the kernel.
const QUERIES: usize = 40;

impl Cpu {
    pub(super) fn attend_prefill(&mut self, a: &Attention<'_>, out: MatMut<'_>) {
        let (kernels, group) = (self.kernels, a.group());
        let (y, out_stride) = (Shared(out.data.as_mut_ptr()), out.stride);
        let tokens = (QUERIES / group).max(1); // per task
        let sequences: Vec<_> = a.visible.chunks(tokens).map(|visible| Sequence::new(visible, a.position)).collect();
        let keys_t = hk::HK_KEYS_STRIDE as usize * a.key_dim;
        self.scores.resize(self.scores.len().max(self.pool.threads() * keys_t), 0.0);
        let scratch = Shared(self.scores.as_mut_ptr());
        // Consecutive tasks share a head's rows in L2; the last tokens, which see the most rows, come first.
        let tasks = sequences.len() * a.kv_heads;
        self.pool.run(tasks, |task, thread| {
            let task = tasks - 1 - task;
            let (i, head) = (task % sequences.len(), task / sequences.len());
            let (s, t, heads) = (&sequences[i], i * tokens, head..head + 1);
            let spans = s.spans(a, &heads);
            let args = hk::hk_attend_prefill {
                kv: s.kernel_args(a, &heads, &spans),
                tokens: s.first.len(),
                group,
                q: a.q.row(t)[head * group * a.key_dim..].as_ptr(),
                q_stride: a.q.stride,
                first: s.first.as_ptr(),
                end: s.end.as_ptr(),
                scale: a.scale(),
                scratch: scratch.at(thread * keys_t),
                out: y.at(t * out_stride + head * group * a.value_dim),
                out_stride,
            };
            call!(kernels, attend_prefill(&args));
        });
    }
}
