//! Quantized blocks of every type, plain and packed, and matrices of them.

use std::{cell::RefCell, num::NonZeroUsize};

use hymba::{
    backend::{Backend, Buffer, Cpu, MatMut, MatRef, Op},
    format::{
        Blob, DType, Matrix,
        codec::{BLOCK, Block, decode_row, encode_row},
        packed::{GROUP, Packing, pack, unpack, unpack_row},
    },
    quant::requantize,
};

thread_local! {
    static CPU: RefCell<Cpu> = RefCell::new(Cpu::new(NonZeroUsize::MIN));
}

/// Input: type, rows, blocks per row, target type; then the bytes of stored rows, repeated.
pub fn decode(data: &[u8]) -> bool {
    let [kind, rows, blocks, target, bytes @ ..] = data else { return false };
    let pick = |choice: &u8| DType::ALL[usize::from(*choice) % DType::ALL.len()];
    let (dtype, rows, cols) = (pick(kind), usize::from(rows % 20) + 1, BLOCK * (usize::from(blocks % 5) + 1));
    let row = dtype.row_bytes(cols).expect("whole blocks");
    let stored = rows.next_multiple_of(GROUP);
    let mut plain: Vec<u8> = bytes.iter().copied().chain([0]).cycle().take(rows * row).collect();
    plain.resize(stored * row, 0);

    let mut finite = true;
    let mut values = vec![f32::NAN; cols];
    for bytes in plain.chunks(row) {
        decode_row(dtype, bytes, &mut values);
        finite &= values.iter().all(|v| v.is_finite());
        let mut restored = vec![0; row];
        // floats and the parts of blocks are restored exactly, except for scales that are NaN
        let encoded = encode_row(dtype, &values, &mut restored);
        assert!(encoded.is_err() || values.iter().all(|v| v.is_finite()));
        if encoded.is_ok() && !dtype.is_quantized() {
            assert_eq!(restored, bytes);
        }
        if dtype.is_quantized() {
            for bytes in bytes.chunks(dtype.block_bytes()) {
                let (block, mut restored) = (Block::load(dtype, bytes), vec![0; bytes.len()]);
                if block.d.is_finite() && block.m.is_finite() && (dtype != DType::Mxfp4 || bytes[0] != 255) {
                    block.store(dtype, &mut restored);
                    assert_eq!(restored, bytes, "{dtype}");
                }
            }
        }
    }

    let mut layouts = vec![(Packing::Plain, plain[..rows * row].to_vec())];
    if Packing::fits(dtype) {
        let (mut packed, mut restored, mut one) = (vec![0; plain.len()], vec![0; plain.len()], vec![0; row]);
        plain.chunks(GROUP * row).zip(packed.chunks_mut(GROUP * row)).for_each(|(from, to)| pack(dtype, from, to));
        packed.chunks(GROUP * row).zip(restored.chunks_mut(GROUP * row)).for_each(|(from, to)| unpack(dtype, from, to));
        assert_eq!(restored, plain, "packing is a permutation");
        unpack_row(dtype, &packed[..GROUP * row], 5, &mut one);
        assert_eq!(one, plain[5 * row..6 * row]);
        layouts.push((Packing::X8, packed));
    }
    for (packing, data) in layouts {
        let matrix = Matrix { id: 0, dtype, packing, rows, cols, data: Blob::from_vec(data) };
        matrix.row(rows - 1, &mut values);
        let x = Buffer::F32(vec![1.0; 3 * cols]);
        let mut out = Buffer::F32(vec![0.0; 3 * rows]);
        for tokens in [1, 3] {
            let x = MatRef { buffer: &x, rows: tokens, start: 0, cols, stride: cols };
            let out = MatMut { buffer: &mut out, rows: tokens, start: 0, cols: rows, stride: rows };
            CPU.with_borrow_mut(|cpu| cpu.run(Op::MatMul { w: &matrix, x, out, spans: &[], accumulate: false }));
        }
        if let Ok(Some(other)) = requantize(&matrix, pick(target)) {
            assert!(finite, "NaN was stored as a number");
            other.row(rows - 1, &mut values);
        }
    }
    finite
}

pub fn seeds() -> Vec<Vec<u8>> {
    // scales of 1 and 2, then codes
    (0..DType::ALL.len() as u8)
        .map(|kind| [&[kind, 8, 1, kind + 1, 0, 0x3c, 0, 0x40][..], &[0x31; 30]].concat())
        .collect()
}
