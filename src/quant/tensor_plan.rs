//! The conversion of one tensor: its source, and how its rows are converted.

use std::{
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
};

use rayon::prelude::*;

use super::rounding::Searcher;
use crate::{
    Error, Result,
    format::{
        Blob, DType, Stored,
        codec::{Unfit, decode_row, encode_row},
        gguf::Tensor,
        packed::{self, GROUP, Packing},
    },
    model::tensors::{Role, Spec},
};

/// Approximate size in bytes of an input piece.
const READ_BYTES: usize = 4 << 20;

/// The plan for one tensor.
#[derive(Clone)]
pub(super) struct TensorPlan {
    pub(super) spec: Spec,
    pub(super) input: Stored,
    /// The type of the output.
    pub(super) dtype: DType,
    pub(super) packing: Packing,
    /// Whether to convert A_log to A.
    pub(super) a_is_log: bool,
    /// Searches for scales; `None`: round to nearest.
    pub(super) searcher: Option<Arc<Searcher>>,
    /// Importance of each column, if known.
    pub(super) importance: Option<Vec<f32>>,
}

impl TensorPlan {
    /// Loads the whole tensor of the checkpoint into memory, for computation.
    pub(super) fn load(&self, cancel: &AtomicBool) -> Result<Tensor> {
        let Self { spec, input, .. } = self;
        let dtype = if spec.role == Role::Exact { DType::F32 } else { input.dtype };
        let packing = Packing::fastest(dtype);
        let plain = Self { dtype, packing, searcher: None, importance: None, ..self.clone() };
        let mut out = Vec::new();
        plain.convert(0, &self.read(0..self.input_rows())?, &mut out, cancel)?;
        let (name, dims) = (spec.name.clone(), spec.shape.clone());
        Ok(Tensor { name, dims, dtype, packing, offset: 0, data: Blob::from_vec(out) })
    }

    pub(super) fn rows_and_cols(&self) -> (usize, usize) {
        match self.spec.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.spec.shape.iter().product()),
        }
    }

    pub(super) fn row_bytes(&self, dtype: DType) -> usize {
        // Layouts and checkpoints consist of whole blocks.
        dtype.row_bytes(self.rows_and_cols().1).unwrap_or(0)
    }

    /// Returns the number of input rows, including the padding of the last group.
    fn input_rows(&self) -> usize {
        self.input.packing.stored_rows(self.rows_and_cols().0)
    }

    pub(super) fn input_bytes(&self) -> u64 {
        (self.input_rows() * self.row_bytes(self.input.dtype)) as u64
    }

    /// Divides the rows of the input into pieces of whole groups; the last piece of a plain tensor may be shorter.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.input_rows();
        let step = (READ_BYTES / self.row_bytes(self.input.dtype)).next_multiple_of(GROUP).max(GROUP);
        (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
    }

    pub(super) fn read(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes(self.input.dtype);
        let mut bytes = vec![0; rows.len() * row_bytes];
        self.input.read((rows.start * row_bytes) as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Converts the complete rows in `bytes`, starting at row `first`. `cancel` is checked before each row, since the
    /// search for scales may take a second per piece.
    pub(super) fn convert(&self, first: usize, bytes: &[u8], out: &mut Vec<u8>, cancel: &AtomicBool) -> Result<()> {
        let (from, to) = (self.row_bytes(self.input.dtype), self.row_bytes(self.dtype));
        let (all_rows, cols) = self.rows_and_cols();
        let rows = (bytes.len() / from).min(all_rows - first);
        let unpacked;
        let plain = match self.input.packing {
            Packing::Plain => bytes,
            Packing::X8 => {
                unpacked = regroup(bytes, from, |from, to| packed::unpack(self.input.dtype, from, to));
                &unpacked
            }
        };
        out.clear();
        out.resize(self.packing.stored_rows(rows) * to, 0);
        let pairs = plain.par_chunks_exact(from).zip(out.par_chunks_exact_mut(to)).take(rows);
        pairs.enumerate().with_min_len(8).try_for_each_init(
            || vec![0f32; cols],
            |values, (row, (bytes, out))| {
                Error::check_cancelled(cancel)?;
                self.convert_row(values, bytes, out).map_err(|unfit| self.unfit(first + row, unfit))
            },
        )?;
        if self.packing == Packing::X8 {
            *out = regroup(out, to, |from, to| packed::pack(self.dtype, from, to));
        }
        Ok(())
    }

    fn convert_row(&self, values: &mut [f32], bytes: &[u8], out: &mut [u8]) -> std::result::Result<(), Unfit> {
        decode_row(self.input.dtype, bytes, values);
        if self.a_is_log {
            values.iter_mut().for_each(|v| *v = -f64::from(*v).exp() as f32);
        } else if self.input.dtype == self.dtype {
            // Re-encoding blocks could change them.
            out.copy_from_slice(bytes);
            return values.iter().all(|v| v.is_finite()).then_some(()).ok_or(Unfit::NotFinite);
        }
        match &self.searcher {
            Some(searcher) => searcher.encode_row(values, self.importance.as_deref(), out),
            None => encode_row(self.dtype, values, out),
        }
    }

    pub(super) fn unfit(&self, row: usize, unfit: Unfit) -> Error {
        let Spec { name, official, .. } = &self.spec;
        match unfit {
            Unfit::NotFinite => Error::Request(format!(
                "tensor `{name}` ({official}) contains NaN or infinity in row {row}; the checkpoint is damaged, download it again"
            )),
            Unfit::Overflow => {
                let (name, official) = (name.clone(), official.clone());
                Error::TensorRange { name, official, row, dtype: self.dtype.name() }
            }
        }
    }
}

/// Packs or unpacks `from`, complete groups of rows of `row` bytes.
fn regroup(from: &[u8], row: usize, turn: impl Fn(&[u8], &mut [u8]) + Sync) -> Vec<u8> {
    let mut to = vec![0; from.len()];
    let groups = to.par_chunks_exact_mut(GROUP * row).zip(from.par_chunks_exact(GROUP * row));
    groups.for_each(|(to, from)| turn(from, to));
    to
}
