//! The expected bytes are what the PyPI package `gguf` (`gguf.quants.quantize`) makes of the same values.

use super::*;

fn ramp() -> [f32; 32] {
    std::array::from_fn(|i| ((i as i32 * 37 + 11) % 64 - 32) as f32 / 10.0)
}

/// 32 values that start with `first`, zeros after.
fn block(first: &[f32]) -> [f32; 32] {
    std::array::from_fn(|i| first.get(i).copied().unwrap_or(0.0))
}

#[track_caller]
fn check(dtype: DType, values: &[f32], expected: &str) {
    let mut out = vec![0; dtype.row_bytes(values.len()).unwrap()];
    encode_row(dtype, values, &mut out).unwrap();
    let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, expected, "{dtype} of {values:?}");
}

#[test]
fn encodes_as_ggml_does() {
    check(DType::Q4_0, &ramp(), "6636730c953fc851ea841da63fd962fb842e");
    check(DType::Q8_0, &ramp(), "7326ad40d467fc9124b94be073089d30c457ec8114a93cd063f88d20b547dc6f0499");
    // Two values share the largest magnitude: the first decides the sign of the scale. Others lie halfway.
    let mut ties = block(&[0.0, 0.0, 0.0, 1.0, 0.0, -1.0]);
    ties[20..23].copy_from_slice(&[0.4375, 0.0625, -0.0625]);
    check(DType::Q4_0, &ties, "00b088888880588f98888888888888888888");
    check(DType::Q8_0, &ties, "08200000007f008100000000000000000000000000003808f8000000000000000000");
    let halves = block(&[127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 126.5]);
    check(DType::Q8_0, &halves, "003c7f01ff02fe03fd7f000000000000000000000000000000000000000000000000");
    check(DType::Q4_0, &[0.0; 32], "008088888888888888888888888888888888");
    check(DType::Q8_0, &[0.0; 32], &"00".repeat(34));
    let tiny = ramp().map(|v| v * 1e-7);
    check(DType::Q4_0, &tiny, "0100730c953fc851ea841da63fd962fb842e");
    check(DType::Q8_0, &tiny, "0000ad3fd467fc9124b94be073089d30c457ec8114a93cd063f88d20b547dc6f0499");
    let halfs = [1.0, -2.5, 65504.0, 1e-7, 6e-8, std::f32::consts::PI, 1.000_488_3, 1.001_464_8];
    check(DType::F16, &halfs, "003c00c1ff7b020001004842003c023c");
    let brains = [1.0, -2.5, 65504.0, 1e-40, std::f32::consts::PI, 1.003_906_3, 1.011_718_8, 1e38];
    check(DType::BF16, &brains, "803f20c0804701004940803f823f967e");
}

#[test]
fn a_scale_too_small_to_divide_by_gives_zeros() {
    check(DType::Q4_0, &[1e-40; 32], "008088888888888888888888888888888888");
    check(DType::Q8_0, &[1e-40; 32], &"00".repeat(34));
}

#[test]
fn rounds_halves_away_from_zero() {
    for eighth in -127 * 8..=127 * 8 {
        for v in [eighth as f32 / 8.0, (eighth as f32 / 8.0).next_down(), (eighth as f32 / 8.0).next_up()] {
            assert_eq!(round(v), v.round() as i32, "{v}");
        }
    }
}

#[test]
fn decodes_what_it_encodes() {
    let values: Vec<f32> = (0..160).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    for (dtype, tolerance) in
        [(DType::F32, 0.0), (DType::F16, 5e-4), (DType::BF16, 4e-3), (DType::Q8_0, 5e-3), (DType::Q4_0, 0.13)]
    {
        let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
        encode_row(dtype, &values, &mut bytes).unwrap();
        let mut back = vec![f32::NAN; values.len()];
        decode_row(dtype, &bytes, &mut back);
        let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{dtype}: {worst}");
        // What has been rounded once stays as it is.
        let mut again = vec![0; bytes.len()];
        if dtype.block_len() == 1 {
            encode_row(dtype, &back, &mut again).unwrap();
            assert_eq!(again, bytes, "{dtype}");
        }
    }
}

#[test]
fn decodes_nibbles_in_ggml_order() {
    let mut bytes = [0u8; 18];
    bytes[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
    bytes[2] = 0xf0;
    bytes[17] = 0x19;
    let mut out = [f32::NAN; 32];
    decode_row(DType::Q4_0, &bytes, &mut out);
    assert_eq!((out[0], out[16], out[15], out[31]), (-4.0, 3.5, 0.5, -3.5));
}

#[test]
fn refuses_what_does_not_fit() {
    for dtype in DType::ALL {
        let mut out = vec![0; dtype.row_bytes(32).unwrap()];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(encode_row(dtype, &block(&[1.0, bad]), &mut out), Err(Unfit::NotFinite), "{dtype}");
        }
        let largest = encode_row(dtype, &block(&[0.0, -f32::MAX]), &mut out);
        assert_eq!(largest, if dtype == DType::F32 { Ok(()) } else { Err(Unfit::Overflow) }, "{dtype}");
    }
    let mut out = [0; 64];
    assert_eq!(encode_row(DType::F16, &block(&[65519.0]), &mut out), Ok(()));
    assert_eq!(encode_row(DType::F16, &block(&[65520.0]), &mut out), Err(Unfit::Overflow));
}
