//! Keys or values in the CPU's layout `[heads, rows, dim]`. The rows of a head are contiguous, so that threads working
//! on different heads read different pages, and a thread working on several heads reads several streams. The interface
//! has rows of all heads.

use std::ops::Range;

use bytemuck::allocation::try_zeroed_vec;
use half::f16;
use hymba_kernels_cpu::{Cpu, KvRows, MatRef};

use crate::format::{
    CacheType, DType,
    codec::{decode_row, encode_row},
};

/// Keys or values of all heads.
pub struct Kv {
    /// The allocation, of which the first `heads * rows * dim` values are in use.
    values: Values,
    rows: usize,
    heads: usize,
    dim: usize,
}

enum Values {
    /// As raw bits.
    F16(Vec<u16>),
    F32(Vec<f32>),
    /// Blocks, as raw bytes.
    Q8_0(Vec<u8>),
}

impl Kv {
    /// Returns zeros; fails if there is not enough memory.
    pub fn new(kind: CacheType, rows: usize, heads: usize, dim: usize) -> Option<Self> {
        let len = rows.checked_mul(heads)?.checked_mul(dim)?;
        // Zeroed by the system, so that untouched pages take no memory.
        let values = match kind {
            CacheType::F16 => try_zeroed_vec(len).map(Values::F16),
            CacheType::F32 => try_zeroed_vec(len).map(Values::F32),
            CacheType::Q8_0 => try_zeroed_vec(kind.size(len)).map(Values::Q8_0),
        };
        Some(Self { values: values.ok()?, rows, heads, dim })
    }

    /// Returns the view that attention reads.
    pub fn view(&self) -> KvRows<'_> {
        let all = 0..self.rows * self.width();
        match &self.values {
            Values::F16(values) => KvRows::F16(&values[all]),
            Values::F32(values) => KvRows::F32(&values[all]),
            Values::Q8_0(blocks) => KvRows::Q8_0(&blocks[bytes(all)]),
        }
    }

    /// Returns the number of values per row.
    pub fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Sets all values to zero.
    pub fn clear(&mut self) {
        match &mut self.values {
            Values::F16(values) => values.fill(0),
            Values::F32(values) => values.fill(0.0),
            Values::Q8_0(blocks) => blocks.fill(0),
        }
    }

    /// Returns the range of a head's `rows`.
    fn span(&self, head: usize, rows: Range<usize>) -> Range<usize> {
        assert!(rows.end <= self.rows, "a cache of {} rows has no row {}", self.rows, rows.end - 1);
        let at = |row: usize| (head * self.rows + row) * self.dim;
        at(rows.start)..at(rows.end)
    }

    /// Replaces all rows by x `[rows, heads * dim]`, packed regardless of the capacity.
    ///
    /// # Panics If the capacity is too small.
    pub fn fill(&mut self, cpu: &mut Cpu, x: MatRef<'_>) {
        self.rows = x.rows();
        self.store(cpu, x, 0);
    }

    /// Stores x `[rows, heads * dim]` in rows `first..`.
    pub fn store(&mut self, cpu: &mut Cpu, x: MatRef<'_>, first: usize) {
        for head in 0..self.heads {
            let part = x.columns(head * self.dim..(head + 1) * self.dim);
            let span = self.span(head, first..first + x.rows());
            let row = |t: usize| part.row(t);
            match &mut self.values {
                Values::F16(to) => cpu.to_f16(part, &mut to[span]),
                Values::F32(to) => to[span].chunks_exact_mut(self.dim).enumerate().for_each(|(t, to)| {
                    to.copy_from_slice(row(t));
                }),
                Values::Q8_0(to) => {
                    to[bytes(span)].chunks_exact_mut(CacheType::Q8_0.size(self.dim)).enumerate().for_each(|(t, to)| {
                        encode_q8(row(t), to);
                    });
                }
            }
        }
    }

    /// Returns the first `rows` rows `[rows, heads * dim]`.
    pub fn load(&self, rows: usize) -> Vec<f32> {
        let mut all = vec![0.0; rows * self.width()];
        for (head, row) in (0..self.heads).flat_map(|head| (0..rows).map(move |row| (head, row))) {
            let (span, to) =
                (self.span(head, row..row + 1), &mut all[row * self.width() + head * self.dim..][..self.dim]);
            match &self.values {
                Values::F16(from) => to.iter_mut().zip(&from[span]).for_each(|(v, &h)| *v = f16::from_bits(h).to_f32()),
                Values::F32(from) => to.copy_from_slice(&from[span]),
                Values::Q8_0(from) => decode_row(DType::Q8_0, &from[bytes(span)], to),
            }
        }
        all
    }

    /// Copies `rows` of a buffer of the same type and width to rows `first..`.
    pub fn copy(&mut self, from: &Self, rows: Range<usize>, first: usize) {
        assert!((self.heads, self.dim) == (from.heads, from.dim), "rows are copied between buffers of the same shape");
        for head in 0..self.heads {
            let (a, b) = (from.span(head, rows.clone()), self.span(head, first..first + rows.len()));
            match (&from.values, &mut self.values) {
                (Values::F16(from), Values::F16(to)) => to[b].copy_from_slice(&from[a]),
                (Values::F32(from), Values::F32(to)) => to[b].copy_from_slice(&from[a]),
                (Values::Q8_0(from), Values::Q8_0(to)) => to[bytes(b)].copy_from_slice(&from[bytes(a)]),
                _ => panic!("rows are copied between buffers of the same type"),
            }
        }
    }
}

/// Returns the byte range of the blocks of some values.
fn bytes(values: Range<usize>) -> Range<usize> {
    CacheType::Q8_0.size(values.start)..CacheType::Q8_0.size(values.end)
}

/// Encodes values as blocks. Values that are not finite get a scale that is not finite, so that they are detected.
fn encode_q8(values: &[f32], blocks: &mut [u8]) {
    if encode_row(DType::Q8_0, values, blocks).is_err() {
        blocks
            .chunks_exact_mut(CacheType::Q8_0.size(32))
            .for_each(|block| block[..2].copy_from_slice(&f16::NAN.to_le_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_rows_round_trip() {
        let mut cpu = Cpu::new(2.try_into().unwrap());
        let (rows, heads, dim) = (7, 3, 32);
        let x: Vec<f32> = (0..rows * heads * dim).map(|i| i as f32 * if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let row = heads * dim;
        for kind in CacheType::ALL {
            let mut kv = Kv::new(kind, rows + 2, heads, dim).unwrap();
            kv.store(&mut cpu, MatRef::new(&x, 3, 0, row, row), 4);
            kv.store(&mut cpu, MatRef::new(&x, 4, 3 * row, row, row), 0);
            let close = |got: &[f32], want: &[f32]| {
                let tolerance = if kind == CacheType::Q8_0 { 2.7 } else { 0.0 }; // half a step of a block whose largest value is 127
                got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() <= tolerance)
            };
            let both = [&x[3 * row..], &x[..3 * row]].concat();
            assert!(close(&kv.load(rows), &both), "{kind:?}");
            let mut less = Kv::new(kind, 3, heads, dim).unwrap();
            less.copy(&kv, 3..5, 1);
            assert!(close(&less.load(3), &[&vec![0.0; row], &both[3 * row..5 * row]].concat()), "{kind:?}");
            less.fill(&mut cpu, MatRef::new(&x, 1, 2 * row, row, row));
            assert!(close(&less.load(1), &x[2 * row..3 * row]), "{kind:?}");
            less.fill(&mut cpu, MatRef::new(&x, 3, row, row, row));
            assert!(close(&less.load(3), &x[row..4 * row]), "{kind:?}");
            less.clear();
            assert!(less.load(3).iter().all(|&v| v == 0.0));
        }
        assert!(Kv::new(CacheType::F16, usize::MAX, 2, 2).is_none());
    }
}
