//! The expected bytes were produced by the PyPI package `gguf` (`gguf.quants.quantize`) from the same values; those of
//! IQ4_NL, which it can only decode, by ggml's `quantize_row_iq4_nl_ref`.

use super::*;

fn ramp() -> [f32; 32] {
    std::array::from_fn(|i| ((i as i32 * 37 + 11) % 64 - 32) as f32 / 10.0)
}

/// Returns 32 values: `first`, then zeros.
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
    check(DType::Q4_1, &ramp(), "823666c2730c952ec851ea731da63fc862fb841d");
    check(DType::Q5_0, &ramp(), "66325aad546ae6083b5d80a2d5f72a4c7f91c4e6193b");
    check(DType::Q5_1, &ramp(), "4c3266c25aad546ae6083b5d80a2d5f72a4c7f91c4e6193b");
    check(DType::Q8_0, &ramp(), "7326ad40d467fc9124b94be073089d30c457ec8114a93cd063f88d20b547dc6f0499");
    check(DType::Iq4Nl, &ramp(), "8426620da42fc841eb731db52fd951fc831e");
    check(DType::Mxfp4, &ramp(), "7eaef52ce750cf649ef63be761ce740df6");
    // All of one sign: the minimum is useful.
    let high = ramp().map(|v| v + 5.0);
    check(DType::Q4_1, &high, "8236333f730c952ec851ea731da63fc862fb841d");
    check(DType::Q5_1, &high, "4c32333f5aad546ae6083b5d80a2d5f72a4c7f91c4e6193b");
    check(DType::Iq4Nl, &high, "ddab34512340123501245123401235012450");
    // Two values share the largest magnitude: the first determines the sign of the scale. Others lie halfway.
    let mut ties = block(&[0.0, 0.0, 0.0, 1.0, 0.0, -1.0]);
    ties[20..23].copy_from_slice(&[0.4375, 0.0625, -0.0625]);
    check(DType::Q4_0, &ties, "00b088888880588f98888888888888888888");
    check(DType::Q4_1, &ties, "443000bc7777777fb78077777777777777777777");
    check(DType::Q5_0, &ties, "00acf7ffcfff0000000090ff10000000000000000000");
    check(DType::Q5_1, &ties, "212c00bcdfffbfff0000000f6000f0000000000000000000");
    check(DType::Q8_0, &ties, "08200000007f008100000000000000000000000000003808f8000000000000000000");
    check(DType::Iq4Nl, &ties, "42a088888880487f98888888888888888888");
    check(DType::Mxfp4, &ties, "7d00000006300e00000000000000000000");
    let halves = block(&[127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 126.5]);
    check(DType::Q8_0, &halves, "003c7f01ff02fe03fd7f000000000000000000000000000000000000000000000000");
    check(DType::Iq4Nl, &halves, "fcbb80888888888888808888888888888888");
    check(DType::Mxfp4, &halves, "8307000000000000070000000000000000");
    check(DType::Q4_0, &[0.0; 32], "008088888888888888888888888888888888");
    check(DType::Q5_0, &[0.0; 32], "0080ffffffff00000000000000000000000000000000");
    for dtype in [DType::Q8_0, DType::Q4_1, DType::Q5_1, DType::Iq4Nl, DType::Mxfp4] {
        check(dtype, &[0.0; 32], &"00".repeat(dtype.block_bytes()));
    }
    let tiny = ramp().map(|v| v * 1e-7);
    check(DType::Q4_0, &tiny, "0100730c953fc851ea841da63fd962fb842e");
    check(DType::Q4_1, &tiny, "01000580730c952ec851ea731da63fc862fb841d");
    check(DType::Q5_0, &tiny, "00005aad546ae6083b5d80a2d5f72a4c7f91c4e6193b");
    check(DType::Q5_1, &tiny, "000005805aad546ae6083b5d80a2d5f72a4c7f91c4e6193b");
    check(DType::Q8_0, &tiny, "0000ad3fd467fc9124b94be073089d30c457ec8114a93cd063f88d20b547dc6f0499");
    check(DType::Iq4Nl, &tiny, "0000620da42fc841eb731db52fd951fc831e");
    check(DType::Mxfp4, &tiny, "67aef52ce650ce639de53bd651be640de6");
    let halves = [1.0, -2.5, 65504.0, 1e-7, 6e-8, std::f32::consts::PI, 1.000_488_3, 1.001_464_8];
    check(DType::F16, &halves, "003c00c1ff7b020001004842003c023c");
    let bfloats = [1.0, -2.5, 65504.0, 1e-40, std::f32::consts::PI, 1.003_906_3, 1.011_718_8, 1e38];
    check(DType::BF16, &bfloats, "803f20c0804701004940803f823f967e");
}

#[test]
fn scales_without_a_finite_inverse_give_zeros() {
    check(DType::Q4_0, &[1e-40; 32], "008088888888888888888888888888888888");
    for dtype in [DType::Q8_0, DType::Q4_1, DType::Q5_1, DType::Iq4Nl, DType::Mxfp4] {
        check(dtype, &[1e-40; 32], &"00".repeat(dtype.block_bytes()));
    }
}

#[test]
fn decodes_what_it_encodes() {
    let values: Vec<f32> = (0..160).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    for (dtype, tolerance) in [
        (DType::F32, 0.0),
        (DType::F16, 5e-4),
        (DType::BF16, 4e-3),
        (DType::Q8_0, 5e-3),
        (DType::Q5_1, 0.035),
        (DType::Q5_0, 0.065),
        (DType::Q4_1, 0.07),
        (DType::Q4_0, 0.13),
        (DType::Iq4Nl, 0.13),
        (DType::Mxfp4, 0.26),
    ] {
        let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
        encode_row(dtype, &values, &mut bytes).unwrap();
        let mut back = vec![f32::NAN; values.len()];
        decode_row(dtype, &bytes, &mut back);
        let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{dtype}: {worst}");
        // Rounded values stay as they are.
        let mut again = vec![0; bytes.len()];
        if dtype.block_len() == 1 {
            encode_row(dtype, &back, &mut again).unwrap();
            assert_eq!(again, bytes, "{dtype}");
        }
    }
}

#[test]
fn decodes_codes_in_ggml_order() {
    let values = |dtype: DType, head: &[u8]| {
        let mut bytes = vec![0u8; dtype.block_bytes()];
        bytes[..head.len()].copy_from_slice(head);
        let nibbles = bytes.len() - 16;
        (bytes[nibbles], bytes[nibbles + 15]) = (0xf0, 0x19);
        let mut out = [f32::NAN; 32];
        decode_row(dtype, &bytes, &mut out);
        (out[0], out[16], out[15], out[31])
    };
    let (half, one) = (f16::from_f32(0.5).to_le_bytes(), f16::from_f32(1.0).to_le_bytes());
    // Fifth bits of values 0 and 31.
    let fifth = 0x8000_0001u32.to_le_bytes();
    assert_eq!(values(DType::Q4_0, &half), (-4.0, 3.5, 0.5, -3.5));
    assert_eq!(values(DType::Q4_1, &[half, one].concat()), (1.0, 8.5, 5.5, 1.5));
    assert_eq!(values(DType::Q5_0, &[&half[..], &fifth].concat()), (0.0, -0.5, -3.5, 0.5));
    assert_eq!(values(DType::Q5_1, &[&half[..], &one, &fifth].concat()), (9.0, 8.5, 5.5, 9.5));
    assert_eq!(values(DType::Iq4Nl, &half), (-63.5, 56.5, 6.5, -52.0));
    assert_eq!(values(DType::Mxfp4, &[126]), (0.0, -3.0, -0.25, 0.25));
}

#[test]
fn values_out_of_range_are_rejected() {
    for dtype in DType::ALL {
        let mut out = vec![0; dtype.row_bytes(32).unwrap()];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(encode_row(dtype, &block(&[1.0, bad]), &mut out), Err(Unfit::NotFinite), "{dtype}");
        }
        let largest = encode_row(dtype, &block(&[0.0, -f32::MAX]), &mut out);
        let wide = matches!(dtype, DType::F32 | DType::Mxfp4);
        assert_eq!(largest, if wide { Ok(()) } else { Err(Unfit::Overflow) }, "{dtype}");
    }
    let mut out = [0; 64];
    assert_eq!(encode_row(DType::F16, &block(&[65519.0]), &mut out), Ok(()));
    assert_eq!(encode_row(DType::F16, &block(&[65520.0]), &mut out), Err(Unfit::Overflow));
}
