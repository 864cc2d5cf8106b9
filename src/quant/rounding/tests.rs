use std::sync::atomic::AtomicBool;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{grid::Grid, search::search, *};
use crate::format::{
    DType,
    codec::{BLOCK, Unfit, decode_row, encode_row, round_block},
};

static NO_CANCEL: AtomicBool = AtomicBool::new(false);

fn quantized() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|dtype| dtype.is_quantized())
}

/// Returns values concentrated near zero with some outliers, like weights.
fn weights(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (0..6).map(|_| rng.random_range(-0.02f32..0.02)).sum::<f32>() * rng.random_range(0.2..2.0)).collect()
}

fn loss(x: &[f32], bytes: &[u8], dtype: DType, importance: &[f32]) -> f64 {
    let mut back = vec![0.0; x.len()];
    decode_row(dtype, bytes, &mut back);
    x.iter().zip(&back).zip(importance).map(|((a, b), w)| f64::from(w * (a - b) * (a - b))).sum()
}

#[test]
fn the_searched_scale_is_never_worse_and_often_better() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for dtype in quantized() {
        let searcher = Searcher::new(dtype);
        let (mut plain_sum, mut searched_sum) = (0.0, 0.0);
        for _ in 0..200 {
            let x = weights(&mut rng, BLOCK);
            let importance: Vec<f32> = (0..BLOCK).map(|_| rng.random_range(0.0f32..1.0).powi(3)).collect();
            let mut bytes = vec![0; dtype.block_bytes()];
            encode_row(dtype, &x, &mut bytes).unwrap();
            let plain = loss(&x, &bytes, dtype, &importance);
            searcher.encode_row(&x, Some(&importance), &mut bytes).unwrap();
            let searched = loss(&x, &bytes, dtype, &importance);
            assert!(searched <= plain * 1.0001, "{dtype}: {searched} after {plain}");
            plain_sum += plain;
            searched_sum += searched;
        }
        let bound = if dtype == DType::Q8_0 { 1.0 } else { 0.95 };
        assert!(searched_sum < bound * plain_sum, "{dtype}: {searched_sum} after {plain_sum}");
    }
}

/// Thousands of scales up to twice the plain one, of both signs.
#[test]
fn no_scale_is_much_better_than_the_searched_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for dtype in [DType::Q4_0, DType::Q5_0, DType::Iq4Nl] {
        let grid = Grid::new(dtype);
        let (mut searched, mut best) = (0.0, 0.0);
        for _ in 0..40 {
            let x: [f32; BLOCK] = weights(&mut rng, BLOCK).try_into().unwrap();
            let plain = round_block(dtype, &x);
            let error = |d: f32| {
                let d = grid.scale(d);
                let levels = grid.nearest(&x.map(|v| v / d));
                x.iter().zip(levels).map(|(v, l)| (v - l * d) * (v - l * d)).sum::<f32>()
            };
            let all = (1..=4000).flat_map(|i| [1.0, -1.0].map(|sign| error(sign * plain.d * i as f32 / 2000.0)));
            best += all.fold(f32::INFINITY, f32::min);
            searched += search(&grid, &x, &[1.0; BLOCK], &plain).error;
        }
        assert!(searched <= 1.02 * best, "{dtype}: {searched}, the best is {best}");
    }
}

#[test]
fn zero_and_constant_blocks_are_exact() {
    for dtype in quantized() {
        let searcher = Searcher::new(dtype);
        let mut bytes = vec![0xff; dtype.block_bytes()];
        let mut one = [0.0; BLOCK];
        one[7] = -0.75;
        for x in [[0.0; BLOCK], one] {
            for importance in [None, Some(&[0.0; BLOCK][..])] {
                searcher.encode_row(&x, importance, &mut bytes).unwrap();
                let mut back = [f32::NAN; BLOCK];
                decode_row(dtype, &bytes, &mut back);
                assert!(back.iter().zip(x).all(|(b, x)| (b - x).abs() < 0.25), "{dtype}: {back:?}");
            }
        }
        assert_eq!(searcher.encode_row(&[f32::NAN; BLOCK], None, &mut bytes), Err(Unfit::NotFinite));
        if dtype != DType::Mxfp4 {
            assert_eq!(searcher.encode_row(&[f32::MAX, 0.0].repeat(16), None, &mut bytes), Err(Unfit::Overflow));
        }
    }
}

/// Correlated inputs, some of them much larger than others.
fn inputs(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(rows * cols);
    for _ in 0..rows {
        let mut last = 0.0;
        for i in 0..cols {
            last = 0.8 * last + rng.random_range(-1.0f32..1.0);
            x.push(last * if i % 17 == 3 { 8.0 } else { 1.0 });
        }
    }
    x
}

/// Returns Σ over rows of e·H·eᵀ, with H damped as in the factor.
fn quadratic(e: &[f32], x: &[f32], cols: usize, damping: f32) -> f64 {
    let mean = x.iter().map(|v| f64::from(v * v)).sum::<f64>() / cols as f64;
    let mut sum = 0.0;
    for e in e.chunks(cols) {
        for x in x.chunks(cols) {
            sum += e.iter().zip(x).map(|(a, b)| f64::from(a * b)).sum::<f64>().powi(2);
        }
        sum += e.iter().map(|v| f64::from(v * v)).sum::<f64>() * mean * f64::from(damping);
    }
    sum
}

#[test]
fn compensation_reports_its_loss_and_beats_plain_rounding() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (rows, cols, tokens) = (37, 160, 500);
    let w = weights(&mut rng, rows * cols);
    let x = inputs(&mut rng, tokens, cols);
    let mut hessian = Hessian::new(cols);
    // Added in two parts, the second one from wider rows.
    hessian.add(&x[..200 * cols], 200, cols, &NO_CANCEL);
    let wide: Vec<f32> = x[200 * cols..].chunks(cols).flat_map(|row| row.iter().copied().chain([9.0; 5])).collect();
    hessian.add(&wide, 300, cols + 5, &NO_CANCEL);
    for dtype in quantized() {
        for order in [Order::Stored, Order::Largest] {
            let options = Gptq { damping: 0.01, order };
            let factor = Factor::new(&hessian, &options, &NO_CANCEL).unwrap();
            let row_bytes = dtype.row_bytes(cols).unwrap();
            let mut bytes = vec![0; rows * row_bytes];
            let change = |bytes: &[u8]| {
                let mut back = vec![0.0; rows * cols];
                let rows = back.chunks_mut(cols).zip(bytes.chunks(row_bytes));
                rows.for_each(|(back, bytes)| decode_row(dtype, bytes, back));
                let e: Vec<f32> = w.iter().zip(back).map(|(a, b)| a - b).collect();
                quadratic(&e, &x, cols, options.damping)
            };
            let reported = compensate(dtype, &w, &factor, &mut bytes, &NO_CANCEL).unwrap();
            let cost = change(&bytes);
            assert!((reported / cost - 1.0).abs() < 0.01, "{dtype}, {order:?}: {reported} reported, {cost} measured");
            let searcher = Searcher::new(dtype);
            let alone = w.chunks(cols).zip(bytes.chunks_mut(row_bytes));
            alone.for_each(|(w, bytes)| searcher.encode_row(w, None, bytes).unwrap());
            let alone = change(&bytes);
            assert!(cost < 0.6 * alone, "{dtype}, {order:?}: {cost} after {alone}");
        }
    }
}

#[test]
fn degenerate_inputs_are_handled() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (rows, cols) = (3, 64);
    let w = weights(&mut rng, rows * cols);
    // Fewer inputs than columns, some columns always zero; and no inputs at all.
    let mut x = inputs(&mut rng, 5, cols);
    x.iter_mut().step_by(3).for_each(|v| *v = 0.0);
    let mut few = Hessian::new(cols);
    few.add(&x, 5, cols, &NO_CANCEL);
    for hessian in [few, Hessian::new(cols)] {
        let factor = Factor::new(&hessian, &Gptq { damping: 0.0, ..Gptq::default() }, &NO_CANCEL).unwrap();
        let mut bytes = vec![0; rows * DType::Q4_0.row_bytes(cols).unwrap()];
        assert!(compensate(DType::Q4_0, &w, &factor, &mut bytes, &NO_CANCEL).unwrap().is_finite());
        let mut back = vec![0.0; cols];
        decode_row(DType::Q4_0, &bytes[..bytes.len() / rows], &mut back);
        assert!(back.iter().all(|v| v.is_finite()));
    }
    let nan = [f32::NAN].repeat(rows * cols);
    let factor = Factor::new(&Hessian::new(cols), &Gptq::default(), &NO_CANCEL).unwrap();
    let mut bytes = vec![0; rows * DType::Q4_0.row_bytes(cols).unwrap()];
    assert_eq!(compensate(DType::Q4_0, &nan, &factor, &mut bytes, &NO_CANCEL), Err((0, Unfit::NotFinite)));
    let mut hessian = Hessian::new(cols);
    hessian.add(&nan[..cols], 1, cols, &NO_CANCEL);
    assert!(Factor::new(&hessian, &Gptq::default(), &NO_CANCEL).is_none());
}
