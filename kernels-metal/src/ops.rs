//! The model's operations as dispatches. Shapes are checked here, since kernels cannot do that.

use bytemuck::{Pod, bytes_of};

use crate::{Binding, Buffer, Constants, Device, DeviceError, Dispatch, Format, Weight, weights::WeightMap};

/// A view of a float matrix: some columns of some rows; each row is a token.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The matrix.
    pub buffer: &'a Buffer,
    /// Number of rows.
    pub rows: usize,
    /// Index of the first value: first row · stride + first column.
    pub start: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between rows, in values.
    pub stride: usize,
}

impl View<'_> {
    fn binding(&self, writable: bool) -> Binding {
        let len = if self.rows == 0 { 0 } else { 4 * ((self.rows - 1) * self.stride + self.cols) };
        let offset = 4 * self.start;
        assert!(self.cols <= self.stride && offset + len <= self.buffer.len(), "a view reaches outside its buffer");
        Binding { buffer: self.buffer.clone(), offset, len, writable }
    }

    pub(crate) fn read(&self) -> Binding {
        self.binding(false)
    }

    pub(crate) fn write(&self) -> Binding {
        self.binding(true)
    }

    /// Whether all rows start at a multiple of four values.
    pub(crate) fn aligned(&self) -> bool {
        self.start.is_multiple_of(4) && (self.stride.is_multiple_of(4) || self.rows < 2)
    }
}

/// Returns the binding of a whole buffer.
pub(crate) fn whole(buffer: &Buffer, writable: bool) -> Binding {
    Binding { buffer: buffer.clone(), offset: 0, len: buffer.len(), writable }
}

/// Small arguments of a pass: allocated from the front of a few buffers until the pass is complete.
struct Uploads {
    buffers: Vec<Buffer>,
    used: usize,
}

impl Uploads {
    const LEAST: usize = 1 << 20;

    fn take(&mut self, device: &dyn Device, bytes: &[u8]) -> Result<Binding, DeviceError> {
        if self.buffers.last().is_none_or(|b| self.used + bytes.len() > b.len()) {
            self.buffers.push(device.allocate(bytes.len().max(Self::LEAST))?);
            self.used = 0;
        }
        let buffer = self.buffers.last().expect("one was just made").clone();
        let offset = self.used;
        // SAFETY: the range is inside the buffer, and has not been allocated since the device was idle.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.contents().add(offset), bytes.len()) };
        self.used += bytes.len().next_multiple_of(16);
        Ok(Binding { buffer, offset, len: bytes.len(), writable: false })
    }

    fn reset(&mut self) {
        self.buffers.truncate(1);
        self.used = 0;
    }
}

/// A device with the weights of a model. Operations are enqueued; errors are reported by [`Gpu::finish`].
pub struct Gpu {
    pub(crate) device: Box<dyn Device>,
    weights: WeightMap,
    uploads: Uploads,
    /// Cosines and sines of the last rotation, since consecutive ones often use the same angles.
    angles: Option<(Vec<f32>, Vec<f32>, [Binding; 2])>,
    pub(crate) scratch: [Option<Buffer>; 2],
    /// Whether anything was enqueued since the device was idle.
    busy: bool,
    failure: Option<DeviceError>,
}

fn groups(n: usize, of: usize) -> u32 {
    n.div_ceil(of) as u32
}

impl Gpu {
    /// Returns `device` with `bytes`, which contain all weights that operations will use.
    ///
    /// # Safety `bytes` must not move or change while this exists.
    pub unsafe fn new(device: Box<dyn Device>, bytes: &[u8]) -> Result<Self, DeviceError> {
        // SAFETY: guaranteed by the caller.
        let weights = unsafe { WeightMap::new(&*device, bytes) }?;
        Ok(Self {
            device,
            weights,
            uploads: Uploads { buffers: Vec::new(), used: 0 },
            angles: None,
            scratch: [None, None],
            busy: false,
            failure: None,
        })
    }

    /// Returns the name of the device.
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// Allocates zeroed memory.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        self.device.allocate(bytes)
    }

    /// Waits for all operations. Errors are permanent, since the device's memory is then undefined.
    pub fn finish(&mut self) -> Result<(), DeviceError> {
        if self.busy {
            let done = self.device.finish();
            self.failure = self.failure.take().or(done.err());
            self.uploads.reset();
            self.angles = None;
            self.busy = false;
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Records the first error.
    pub(crate) fn note<T>(&mut self, result: Result<T, DeviceError>) -> Option<T> {
        result.map_err(|e| self.failure.get_or_insert(e)).ok()
    }

    pub(crate) fn upload<T: Pod>(&mut self, values: &[T]) -> Option<Binding> {
        self.busy = true;
        let taken = self.uploads.take(&*self.device, bytemuck::cast_slice(values));
        self.note(taken)
    }

    /// Returns scratch memory of at least `bytes`, which the next user of the same number overwrites.
    pub(crate) fn scratch(&mut self, number: usize, bytes: usize) -> Option<Buffer> {
        if self.scratch[number].as_ref().is_none_or(|b| b.len() < bytes) {
            let buffer = self.device.allocate(bytes);
            self.scratch[number] = Some(self.note(buffer)?);
        }
        self.scratch[number].clone()
    }

    pub(crate) fn weight<T>(&self, part: &[T]) -> Binding {
        self.weights.find(part)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn launch<A: Pod>(
        &mut self,
        kernel: &'static str,
        constants: Constants,
        bindings: &[Binding],
        args: A,
        groups: [u32; 3],
        threads: u32,
        threadgroup_floats: usize,
    ) {
        if groups.contains(&0) || self.failure.is_some() {
            return;
        }
        self.busy = true;
        let threadgroup_bytes = 4 * threadgroup_floats as u32;
        let args = bytes_of(&args);
        self.device.dispatch(&Dispatch { kernel, constants, bindings, args, groups, threads, threadgroup_bytes });
    }

    /// Runs a kernel with one thread for each of `cols` columns of `rows` tokens.
    pub(crate) fn each<A: Pod>(
        &mut self,
        kernel: &'static str,
        constants: Constants,
        bindings: &[Binding],
        args: A,
        cols: usize,
        rows: usize,
    ) {
        let threads = cols.next_multiple_of(32).clamp(32, 256);
        self.launch(kernel, constants, bindings, args, [groups(cols, threads), rows as u32, 1], threads as u32, 0);
    }

    /// Decodes row `rows[i]` of the table to row i of `out`.
    pub fn gather(&mut self, table: Weight<'_>, rows: &[u32], out: View<'_>) {
        assert!(out.cols == table.cols && out.rows == rows.len(), "gather: shapes differ");
        assert!(rows.iter().all(|&r| (r as usize) < table.rows), "gather: a row is not in the table");
        let Some(indices) = self.upload(rows) else { return };
        let constants = Constants { format: table.format as u32, ..Constants::default() };
        let bindings = [self.weight(table.bytes), indices, out.write()];
        let args = [table.cols as u32, rows.len() as u32, out.stride as u32];
        self.each("gather", constants, &bindings, args, table.cols.div_ceil(4), rows.len());
    }

    /// out\[t\] = or += W·x\[t\]. With `decode`, every token is bit-identical to a pass of its own.
    pub fn matmul(&mut self, w: Weight<'_>, x: View<'_>, out: View<'_>, accumulate: bool, decode: bool) {
        /// Up to this many tokens use the kernels for single tokens, since reading the weights takes most of the time.
        const FEW: usize = 4;
        /// Number of tokens that share a read of the weights, as in `shaders/matvec.metal`.
        const TOGETHER: usize = 8;
        /// Number of simdgroups that keep a GPU busy.
        const ENOUGH: usize = 4096;
        let tokens = x.rows;
        assert!(x.cols == w.cols && out.cols == w.rows && out.rows == tokens, "matmul: shapes differ");
        let aligned = x.aligned();
        let constants = Constants { format: w.format as u32, aligned: u32::from(aligned), ..Constants::default() };
        let bindings = [self.weight(w.bytes), x.read(), out.write()];
        let args = [w.rows, w.cols, tokens, x.stride, out.stride, usize::from(accumulate)].map(|n| n as u32);
        if (tokens > FEW && !decode) || (w.format.interleaved() && !aligned) {
            let (rows, tokens, pitch) = (64, 32, 36);
            let groups = [groups(w.rows, rows), groups(x.rows, tokens), 1];
            self.launch("matmul", constants, &bindings, args, groups, 128, (rows + tokens) * pitch);
        } else if w.format.interleaved() {
            let (eights, blocks_at_once) = (w.rows.div_ceil(8), if w.format == Format::Q8_0X8 { 2 } else { 4 });
            let turns = (w.cols / 32).div_ceil(blocks_at_once);
            let mut simds = 1;
            while simds < 8 && eights * simds < ENOUGH && turns >= 3 * simds {
                simds *= 2;
            }
            let groups = [eights as u32, groups(tokens, TOGETHER), 1];
            let floats = 8 * simds * tokens.min(TOGETHER);
            self.launch("matvec_x8", constants, &bindings, args, groups, 32 * simds as u32, floats);
        } else {
            let (simds, rows) = (4, 4);
            let groups = [groups(w.rows, simds * rows), groups(tokens, TOGETHER), 1];
            self.launch("matvec_rows", constants, &bindings, args, groups, 32 * simds as u32, 0);
        }
    }

    /// x\[t\] += bias
    pub fn add_bias(&mut self, x: View<'_>, bias: &[f32]) {
        assert!(bias.len() == x.cols, "add_bias: shapes differ");
        let bindings = [self.weight(bias), x.write()];
        let args = [x.cols as u32, 0, x.stride as u32];
        self.each("add_bias", Constants::default(), &bindings, args, x.cols, x.rows);
    }

    /// out\[t\] = x\[t\] / √(mean(x\[t\]²) + eps) ⊙ gain
    pub fn rms_norm(&mut self, x: View<'_>, gain: &[f32], eps: f32, out: View<'_>) {
        assert!(x.cols == gain.len() && out.cols == x.cols && out.rows == x.rows, "rms_norm: shapes differ");
        let bindings = [x.read(), self.weight(gain), out.write()];
        let args = [x.cols as u32, x.stride as u32, out.stride as u32, eps.to_bits()];
        let simds = simds_for(x.cols);
        let groups = [x.rows as u32, 1, 1];
        self.launch("rms_norm", Constants::default(), &bindings, args, groups, 32 * simds as u32, simds);
    }

    /// RMSNorm of each head of `gain.len()` columns, in place.
    pub fn head_norm(&mut self, x: View<'_>, gain: &[f32], eps: f32) {
        let dim = gain.len();
        assert!(dim > 0 && x.cols.is_multiple_of(dim), "head_norm: {} columns are not whole heads of {dim}", x.cols);
        let heads = x.cols / dim;
        let bindings = [x.write(), self.weight(gain)];
        let args = [dim as u32, heads as u32, x.rows as u32, x.stride as u32, eps.to_bits()];
        let simds = heads.min(4);
        let groups = [groups(heads, simds), x.rows as u32, 1];
        self.launch("head_norm", Constants::default(), &bindings, args, groups, 32 * simds as u32, 0);
    }

    /// out = ½·(RMSNorm(a; gain_a) + RMSNorm(b; gain_b))
    pub fn fuse(&mut self, a: (View<'_>, &[f32]), b: (View<'_>, &[f32]), eps: f32, out: View<'_>) {
        let n = out.cols;
        assert!([a.0.cols, b.0.cols, a.1.len(), b.1.len()] == [n; 4], "fuse: widths differ");
        assert!(a.0.rows == out.rows && b.0.rows == out.rows, "fuse: tokens differ");
        let bindings = [a.0.read(), self.weight(a.1), b.0.read(), self.weight(b.1), out.write()];
        let strides = [a.0.stride, b.0.stride, out.stride].map(|n| n as u32);
        let args = [n as u32, strides[0], strides[1], strides[2], eps.to_bits()];
        let simds = simds_for(n);
        let groups = [out.rows as u32, 1, 1];
        self.launch("fuse", Constants::default(), &bindings, args, groups, 32 * simds as u32, simds);
    }

    /// Rotates the pairs (j, j + dim/2) of each head, in place; cos and sin `[tokens, dim / 2]`.
    pub fn rope(&mut self, x: View<'_>, dim: usize, cos: &[f32], sin: &[f32]) {
        let half = dim / 2;
        assert!(dim > 0 && dim.is_multiple_of(2) && x.cols.is_multiple_of(dim), "rope: {} columns", x.cols);
        assert!(cos.len() >= x.rows * half && sin.len() >= x.rows * half, "rope: angles are missing");
        if self.angles.as_ref().is_none_or(|(c, s, _)| c != cos || s != sin) {
            let (Some(c), Some(s)) = (self.upload(cos), self.upload(sin)) else { return };
            self.angles = Some((cos.to_vec(), sin.to_vec(), [c, s]));
        }
        let Some((_, _, [c, s])) = &self.angles else { return };
        let bindings = [x.write(), c.clone(), s.clone()];
        let args = [(x.cols / dim) as u32, dim as u32, x.stride as u32];
        self.each("rope", Constants::default(), &bindings, args, x.cols / 2, x.rows);
    }

    /// up = silu(gate) ⊙ up
    pub fn silu_mul(&mut self, gate: View<'_>, up: View<'_>) {
        assert!(gate.cols == up.cols && gate.rows == up.rows, "silu_mul: shapes differ");
        let args = [up.cols as u32, gate.stride as u32, up.stride as u32];
        self.each("silu_mul", Constants::default(), &[gate.read(), up.write()], args, up.cols, up.rows);
    }

    /// x = relu(x)²
    pub fn relu2(&mut self, x: View<'_>) {
        let args = [x.cols as u32, 0, x.stride as u32];
        self.each("relu2", Constants::default(), &[x.write()], args, x.cols, x.rows);
    }

    /// Stores x as packed rows of `out`, half floats or floats.
    pub fn store_rows(&mut self, x: View<'_>, out: &Buffer, half: bool) {
        let len = x.rows * x.cols * if half { 2 } else { 4 };
        assert!(len <= out.len(), "store_rows: the output is too short");
        let constants = Constants { cache_half: u32::from(half), ..Constants::default() };
        let bindings = [x.read(), Binding { buffer: out.clone(), offset: 0, len, writable: true }];
        self.each("store_rows", constants, &bindings, [x.cols as u32, x.stride as u32, 0], x.cols, x.rows);
    }

    /// Copies bytes between two buffers; counts and offsets must be even.
    pub fn copy(&mut self, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        let part = |(buffer, offset): (&Buffer, usize), writable| {
            assert!(offset + bytes <= buffer.len(), "copy: outside the buffer");
            Binding { buffer: buffer.clone(), offset, len: bytes, writable }
        };
        let bindings = [part(from, false), part(to, true)];
        self.each("copy", Constants::default(), &bindings, [bytes as u32 / 2], bytes / 2, 1);
    }

    /// Sets all bytes of a buffer to zero.
    pub fn clear(&mut self, buffer: &Buffer) {
        let n = buffer.len() / 2;
        self.each("clear", Constants::default(), &[whole(buffer, true)], [n as u32], n, 1);
    }
}

/// Returns the number of simdgroups for sums over a row.
fn simds_for(cols: usize) -> usize {
    cols.div_ceil(128).clamp(1, 8)
}
