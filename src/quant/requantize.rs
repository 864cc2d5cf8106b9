//! In-memory requantization of matrices, to evaluate a type without writing a file.

use rayon::prelude::*;

use crate::{
    format::{
        Blob, DType, Matrix,
        codec::{Unfit, encode_row},
        packed::{self, GROUP, Packing},
    },
    threads,
};

/// Returns `matrix` rounded to nearest in `dtype`, packed if possible; `None` if its rows do not consist of whole
/// blocks.
pub fn requantize(matrix: &Matrix, dtype: DType) -> Result<Option<Matrix>, Unfit> {
    let Some(row_bytes) = dtype.row_bytes(matrix.cols) else { return Ok(None) };
    let packing = Packing::fastest(dtype);
    let mut data = vec![0; packing.stored_rows(matrix.rows) * row_bytes];
    let buffers = || (vec![0f32; matrix.cols], vec![0u8; GROUP * row_bytes]);
    let requantize_group = |(values, plain): &mut (Vec<f32>, Vec<u8>), (group, out): (usize, &mut [u8])| {
        plain.fill(0); // what pads the last group
        for (row, bytes) in (group * GROUP..matrix.rows).zip(plain.chunks_exact_mut(row_bytes)) {
            matrix.row(row, values);
            encode_row(dtype, values, bytes)?;
        }
        match packing {
            Packing::X8 => packed::pack(dtype, plain, out),
            Packing::Plain => out.copy_from_slice(&plain[..out.len()]),
        }
        Ok(())
    };
    let groups = GROUP * row_bytes;
    match threads::shared() {
        Some(pool) => {
            pool.install(|| data.par_chunks_mut(groups).enumerate().try_for_each_init(buffers, requantize_group))?
        }
        None => {
            let mut buffers = buffers();
            data.chunks_mut(groups).enumerate().try_for_each(|group| requantize_group(&mut buffers, group))?;
        }
    }
    Ok(Some(Matrix { id: matrix.id, dtype, packing, rows: matrix.rows, cols: matrix.cols, data: Blob::from_vec(data) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::codec::decode_row;

    #[test]
    fn rows_keep_their_values() {
        let (rows, cols) = (13, 64);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let plain =
            Matrix { id: 0, dtype: DType::F32, packing: Packing::Plain, rows, cols, data: Blob::from_vec(bytes) };
        for dtype in DType::ALL {
            let other = requantize(&plain, dtype).unwrap().unwrap();
            let back = requantize(&other, DType::F32).unwrap().unwrap();
            for row in 0..rows {
                let (mut got, mut decoded) = (vec![f32::NAN; cols], vec![f32::NAN; cols]);
                other.row(row, &mut got);
                back.row(row, &mut decoded);
                assert_eq!(got, decoded);
                let mut bytes = vec![0; dtype.row_bytes(cols).unwrap()];
                encode_row(dtype, &values[row * cols..][..cols], &mut bytes).unwrap();
                decode_row(dtype, &bytes, &mut decoded);
                assert_eq!(got, decoded, "{dtype}, row {row}");
            }
        }
        let narrow = Matrix { cols: 52, rows: 16, ..plain };
        assert!(requantize(&narrow, DType::Q4_0).unwrap().is_none());
    }
}
