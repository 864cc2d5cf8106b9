//! Matrices with rows interleaved by eight, the layout that the kernels use: see `docs/file-format.md`. It is a
//! permutation of the same blocks; rows are padded to whole groups with zero blocks.

use std::collections::HashMap;

use super::{DType, gguf::Metadata};

/// Rows per group.
pub const GROUP: usize = 8;
/// Bytes of codes per row and piece: four columns, or four pairs of columns.
const CODE_PIECE: usize = 4;

/// Block order of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Row-major, as ggml's readers expect.
    #[default]
    Plain,
    /// Groups of eight rows, interleaved.
    X8,
}

impl Packing {
    /// Whether matrices of `dtype` can be packed.
    pub fn fits(dtype: DType) -> bool {
        dtype.is_quantized()
    }

    /// Returns the fastest order for the kernels.
    pub fn fastest(dtype: DType) -> Self {
        if Self::fits(dtype) { Self::X8 } else { Self::Plain }
    }

    /// Returns the number of stored rows of a matrix with `rows` rows.
    pub fn stored_rows(self, rows: usize) -> usize {
        match self {
            Self::Plain => rows,
            Self::X8 => rows.next_multiple_of(GROUP),
        }
    }
}

/// Returns the metadata name of packed blocks of `dtype`.
pub(super) fn format_name(dtype: DType) -> String {
    format!("{dtype}x{GROUP}")
}

/// Packed tensors by name: type, rows, columns.
pub(super) type PackedIndex<'a> = HashMap<&'a str, (DType, usize, usize)>;

const NAMES: &str = "hymba.packed.name";
const FORMATS: &str = "hymba.packed.format";
const SHAPES: &str = "hymba.packed.shape";

/// Writes the index of packed tensors to `metadata`, replacing an existing one.
pub(super) fn write_index<'a>(metadata: &mut Metadata, tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>) {
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

/// Reads the index of packed tensors; an error is a verb phrase.
pub(super) fn read_index(metadata: &Metadata) -> Result<PackedIndex<'_>, String> {
    let Some(names) = metadata.strings(NAMES) else { return Ok(HashMap::new()) };
    let (formats, shapes) = match (metadata.strings(FORMATS), metadata.uints(SHAPES)) {
        (Some(f), Some(s)) if f.len() == names.len() && s.len() == 2 * names.len() => (f, s),
        _ => return Err(format!("is damaged: {NAMES}, {FORMATS} and {SHAPES} do not match; convert it again")),
    };
    let mut all = HashMap::with_capacity(names.len());
    for ((name, format), shape) in names.iter().zip(formats.iter()).zip(shapes.chunks_exact(2)) {
        let dtype = DType::ALL.into_iter().find(|&d| Packing::fits(d) && format_name(d) == format);
        let dtype = dtype.ok_or_else(|| format!("packs tensor `{name}` in the unknown format {format}"))?;
        let [rows, cols] = [shape[0], shape[1]].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if rows == 0 || cols == 0 || all.insert(name, (dtype, rows, cols)).is_some() {
            return Err(format!("is damaged: {NAMES} or {SHAPES} is wrong about `{name}`; convert it again"));
        }
    }
    Ok(all)
}

/// Interleaves eight consecutive rows of `dtype` from `rows` into `group`, of the same length.
pub fn pack(dtype: DType, rows: &[u8], group: &mut [u8]) {
    let row_len = rows.len() / GROUP;
    for (lane, row) in rows.chunks_exact(row_len).enumerate() {
        for piece in pieces(dtype, row_len, lane) {
            copy(&row[piece.row..], &mut group[piece.group..], piece.len);
            if piece.fifth_bits {
                turn(&mut group[piece.group..], |column| 8 * (column % 4) + column / 4);
            }
        }
    }
}

/// The inverse of [`pack`].
pub fn unpack(dtype: DType, group: &[u8], rows: &mut [u8]) {
    let row_len = group.len() / GROUP;
    for (lane, row) in rows.chunks_exact_mut(row_len).enumerate() {
        unpack_row(dtype, group, lane, row);
    }
}

/// Extracts row `lane` of `group` in plain order.
pub fn unpack_row(dtype: DType, group: &[u8], lane: usize, row: &mut [u8]) {
    debug_assert_eq!(group.len(), GROUP * row.len());
    for piece in pieces(dtype, row.len(), lane) {
        copy(&group[piece.group..], &mut row[piece.row..], piece.len);
        if piece.fifth_bits {
            turn(&mut row[piece.row..], |bit| 4 * (bit % 8) + bit / 8);
        }
    }
}

/// A contiguous piece, with its offsets in the row and in the group.
struct Piece {
    row: usize,
    group: usize,
    len: usize,
    /// Fifth bits of codes, which are permuted within the piece.
    fifth_bits: bool,
}

/// Returns the pieces of row `lane`, `row_len` bytes long: for each block the scale, minimum, fifth bits and codes.
fn pieces(dtype: DType, row_len: usize, lane: usize) -> impl Iterator<Item = Piece> {
    let block = dtype.block_bytes();
    let scale = if dtype == DType::Mxfp4 { 1 } else { 2 };
    let codes = if dtype.has_min() { 2 * scale } else { scale };
    let fifth_at = dtype.has_fifth_bits().then_some(codes);
    let offsets = move || (0..codes).step_by(scale).chain((codes..block).step_by(CODE_PIECE));
    (0..row_len).step_by(block).flat_map(move |start| {
        offsets().map(move |at| {
            let len = if at < codes { scale } else { CODE_PIECE };
            let group = GROUP * (start + at) + lane * len;
            Piece { row: start + at, group, len, fifth_bits: fifth_at == Some(at) }
        })
    })
}

fn copy(from: &[u8], to: &mut [u8], len: usize) {
    to[..len].copy_from_slice(&from[..len]);
}

/// Moves each bit i of the first 32 to position `to(i)`.
fn turn(bits: &mut [u8], to: impl Fn(u32) -> u32) {
    let Some(bits) = bits.first_chunk_mut::<4>() else { return };
    let old = u32::from_le_bytes(*bits);
    *bits = (0..32).fold(0, |new, i| new | (old >> i & 1) << to(i)).to_le_bytes();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three blocks of eight rows, as bytes that all differ from their neighbors.
    fn rows(dtype: DType) -> (usize, Vec<u8>) {
        let row_len = dtype.row_bytes(96).unwrap();
        (row_len, (0..GROUP * row_len).map(|i| (i * 7 + i / 251) as u8).collect())
    }

    #[test]
    fn packing_is_a_permutation_with_the_documented_order() {
        // what is before the codes: bytes of scale, minimum and fifth bits
        for (dtype, head) in [
            (DType::Q8_0, &[2][..]),
            (DType::Q4_0, &[2]),
            (DType::Q4_1, &[2, 2]),
            (DType::Q5_0, &[2, 4]),
            (DType::Q5_1, &[2, 2, 4]),
            (DType::Iq4Nl, &[2]),
            (DType::Mxfp4, &[1]),
        ] {
            let (row_len, rows) = rows(dtype);
            let (mut group, mut back) = (vec![0; rows.len()], vec![0; rows.len()]);
            pack(dtype, &rows, &mut group);
            unpack(dtype, &group, &mut back);
            assert_eq!(back, rows);
            let block = dtype.block_bytes();
            for (lane, row) in rows.chunks(row_len).enumerate() {
                let mut one = vec![0; row_len];
                unpack_row(dtype, &group, lane, &mut one);
                assert_eq!(one, row);
                let (superblock, row) = (&group[8 * block..], &row[block..]); // the second
                let mut at = 0;
                for &len in head {
                    let [packed, plain] = [&superblock[8 * at + len * lane..][..len], &row[at..][..len]];
                    if len == 4 {
                        let bit = |column: usize| plain[column / 8] >> (column % 8) & 1;
                        assert!((0..32).all(|i| packed[i % 4] >> (i / 4) & 1 == bit(i)), "{dtype}");
                    } else {
                        assert_eq!(packed, plain, "{dtype}");
                    }
                    at += len;
                }
                // third chunk, second byte: column 9 (and 25 in the high nibble)
                assert_eq!(superblock[8 * at + 2 * 32 + 4 * lane + 1], row[at + 9], "{dtype}");
            }
        }
    }
}
