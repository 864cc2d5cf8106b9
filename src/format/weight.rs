//! Stored matrices and vectors: views of the memory map, without copies.

use std::ops::Deref;

use super::{
    Blob, DType,
    codec::decode_row,
    gguf::Tensor,
    packed::{GROUP, Packing, unpack_row},
};
use crate::{Error, Result};

/// A stored matrix `[rows, cols]`.
#[derive(Clone)]
pub struct Matrix {
    /// The tensor's number in the model's list of tensors (`model::tensors::specs`).
    pub id: usize,
    /// How the values are stored.
    pub dtype: DType,
    /// The order of the stored blocks.
    pub packing: Packing,
    /// Rows: outputs of a product.
    pub rows: usize,
    /// Columns: inputs of a product.
    pub cols: usize,
    /// The stored rows, without gaps.
    pub data: Blob,
}

impl Matrix {
    /// Decodes row `row` into `out` `[cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let row_bytes = self.data.len() / self.packing.stored_rows(self.rows);
        match self.packing {
            Packing::Plain => decode_row(self.dtype, &self.data[row * row_bytes..][..row_bytes], out),
            Packing::X8 => {
                let group = &self.data[row / GROUP * GROUP * row_bytes..][..GROUP * row_bytes];
                let mut plain = vec![0; row_bytes];
                unpack_row(self.dtype, group, row % GROUP, &mut plain);
                decode_row(self.dtype, &plain, out);
            }
        }
    }
}

/// A few F32 values: a norm's gain, a bias, A, D. `[len]`
#[derive(Clone)]
pub struct Vector(Blob);

impl Vector {
    /// Returns the values of an F32 tensor, on the map.
    pub(crate) fn new(file: &str, tensor: &Tensor) -> Result<Self> {
        let name = &tensor.name;
        if tensor.dtype != DType::F32 {
            return Err(Error::format(file, format!("tensor `{name}` is {}; it must be f32", tensor.dtype)));
        }
        if bytemuck::try_cast_slice::<u8, f32>(&tensor.data).is_err() {
            return Err(Error::format(file, format!("tensor `{name}` is not aligned to 4 bytes")));
        }
        Ok(Self(tensor.data.clone()))
    }
}

impl Deref for Vector {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0) // length and alignment were checked when the file was opened
    }
}
