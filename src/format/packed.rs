//! Matrices whose rows are interleaved by eight, so that the file's layout is the kernel's: see `docs/file-format.md`.
//! A permutation of the same blocks; rows are padded to whole groups with blocks of zeros.

use std::collections::HashMap;

use super::{DType, gguf::Metadata};

/// Rows of a group.
pub const GROUP: usize = 8;
/// Bytes of a row that stay together: four columns of Q8_0, four pairs of Q4_0.
const PIECE: usize = 4;
/// Bytes of a block's scale.
const SCALE: usize = 2;

/// The order of a tensor's blocks in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Row after row, as every reader of ggml's types expects.
    #[default]
    Plain,
    /// Groups of eight rows, interleaved.
    X8,
}

impl Packing {
    /// Can matrices of `dtype` be packed?
    pub fn fits(dtype: DType) -> bool {
        matches!(dtype, DType::Q8_0 | DType::Q4_0)
    }

    /// Rows that are stored for a matrix of `rows` rows.
    pub fn stored_rows(self, rows: usize) -> usize {
        match self {
            Self::Plain => rows,
            Self::X8 => rows.next_multiple_of(GROUP),
        }
    }
}

/// The name of packed blocks of `dtype` in the file's metadata.
pub(super) fn format_name(dtype: DType) -> String {
    format!("{dtype}x{GROUP}")
}

/// What the metadata says of a packed tensor: type, rows, columns.
pub(super) type Announced<'a> = HashMap<&'a str, (DType, usize, usize)>;

const NAMES: &str = "hymba.packed.name";
const FORMATS: &str = "hymba.packed.format";
const SHAPES: &str = "hymba.packed.shape";

/// Writes which tensors are packed into `metadata`, in place of what it said before.
pub(super) fn announce<'a>(metadata: &mut Metadata, tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>) {
    let (mut names, mut formats, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
    for (name, dtype, dims) in tensors {
        names.push(name.to_owned());
        formats.push(format_name(dtype));
        shapes.extend(dims.iter().map(|&d| d as u64));
    }
    [NAMES, FORMATS, SHAPES].into_iter().for_each(|key| metadata.remove(key));
    if !names.is_empty() {
        metadata.set(NAMES, names);
        metadata.set(FORMATS, formats);
        metadata.set(SHAPES, shapes);
    }
}

/// Reads which tensors are packed; an error is what is wrong, as a verb phrase.
pub(super) fn announced(metadata: &Metadata) -> Result<Announced<'_>, String> {
    let Some(names) = metadata.strings(NAMES) else { return Ok(HashMap::new()) };
    let (formats, shapes) = match (metadata.strings(FORMATS), metadata.uints(SHAPES)) {
        (Some(f), Some(s)) if f.len() == names.len() && s.len() == 2 * names.len() => (f, s),
        _ => return Err(format!("is damaged: {NAMES}, {FORMATS} and {SHAPES} do not match; convert it again")),
    };
    let mut all = HashMap::with_capacity(names.len());
    for ((name, format), shape) in names.iter().zip(formats).zip(shapes.chunks_exact(2)) {
        let dtype = DType::ALL.into_iter().find(|&d| Packing::fits(d) && format_name(d) == *format);
        let dtype = dtype.ok_or_else(|| format!("packs tensor `{name}` as {format}, which hymba does not know"))?;
        let [rows, cols] = [shape[0], shape[1]].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if rows == 0 || cols == 0 || all.insert(name.as_str(), (dtype, rows, cols)).is_some() {
            return Err(format!("is damaged: {NAMES} or {SHAPES} is wrong about `{name}`; convert it again"));
        }
    }
    Ok(all)
}

/// Interleaves eight rows of `dtype`, which lie one after the other in `rows`, into `group` of the same length.
pub fn pack(dtype: DType, rows: &[u8], group: &mut [u8]) {
    permute(dtype, rows.len(), |row, packed, n| group[packed..packed + n].copy_from_slice(&rows[row..row + n]));
}

/// The opposite of [`pack`].
pub fn unpack(dtype: DType, group: &[u8], rows: &mut [u8]) {
    permute(dtype, group.len(), |row, packed, n| rows[row..row + n].copy_from_slice(&group[packed..packed + n]));
}

/// Row `lane` of `group`, as it is stored in plain order.
pub fn unpack_row(dtype: DType, group: &[u8], lane: usize, row: &mut [u8]) {
    let (block, row_len) = (dtype.block_bytes(), row.len());
    debug_assert_eq!(group.len(), GROUP * row_len);
    for (b, out) in row.chunks_exact_mut(block).enumerate() {
        permute_block(block, b * block * GROUP, lane, |at, packed, n| {
            out[at..at + n].copy_from_slice(&group[packed..packed + n]);
        });
    }
}

/// Calls `copy(offset in the rows, offset in the group, bytes)` for every piece of a group of `len` bytes.
fn permute(dtype: DType, len: usize, mut copy: impl FnMut(usize, usize, usize)) {
    let (block, row_len) = (dtype.block_bytes(), len / GROUP);
    for lane in 0..GROUP {
        for b in 0..row_len / block {
            let row = lane * row_len + b * block;
            permute_block(block, b * block * GROUP, lane, |at, packed, n| copy(row + at, packed, n));
        }
    }
}

/// The pieces of one lane's block of `block` bytes, in the group's block that starts at `start`.
fn permute_block(block: usize, start: usize, lane: usize, mut copy: impl FnMut(usize, usize, usize)) {
    copy(0, start + lane * SCALE, SCALE);
    for chunk in 0..(block - SCALE) / PIECE {
        let packed = start + GROUP * SCALE + chunk * GROUP * PIECE + lane * PIECE;
        copy(SCALE + chunk * PIECE, packed, PIECE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_a_permutation_with_the_documented_order() {
        for dtype in [DType::Q8_0, DType::Q4_0] {
            let row_len = dtype.row_bytes(96).unwrap();
            let rows: Vec<u8> = (0..GROUP * row_len).map(|i| (i * 7 + i / 251) as u8).collect();
            let (mut group, mut back) = (vec![0; rows.len()], vec![0; rows.len()]);
            pack(dtype, &rows, &mut group);
            unpack(dtype, &group, &mut back);
            assert_eq!(back, rows);
            let block = dtype.block_bytes();
            for (lane, row) in rows.chunks(row_len).enumerate() {
                let mut one = vec![0; row_len];
                unpack_row(dtype, &group, lane, &mut one);
                assert_eq!(one, row);
                // second block, third chunk, second byte: column 9 (and 25 in the high nibble)
                let at = 8 * block + 16 + 2 * 32 + 4 * lane + 1;
                assert_eq!(group[at], row[block + 2 + 9]);
                assert_eq!(group[8 * block + 2 * lane..][..2], row[block..][..2]);
            }
        }
    }
}
