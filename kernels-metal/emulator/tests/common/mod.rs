//! Shared by the tests: a device with weights, poisoned matrices, comparison.
#![allow(dead_code)]

use std::ops::Range;

use half::{bf16, f16};
use hymba_kernels_metal::{Buffer, Device, Format, Gpu, View, Weight};
use hymba_metal_emulator::device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const FORMATS: [Format; 17] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Iq4Nl,
    Format::Mxfp4,
    Format::Q8_0X8,
    Format::Q4_0X8,
    Format::Q4_1X8,
    Format::Q5_0X8,
    Format::Q5_1X8,
    Format::Iq4NlX8,
    Format::Mxfp4X8,
];

/// The levels of IQ4_NL and, doubled, of MXFP4.
const IQ4_NL: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
const E2M1: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The parts of a block beside its scale and 32 codes.
pub struct Parts {
    pub minimum: bool,
    pub fifth_bits: bool,
    /// Size of the codes in bytes.
    pub codes: usize,
    /// Size of the scale in bytes.
    pub scale: usize,
    /// The level of a code.
    level: fn(u8) -> f32,
}

impl Parts {
    /// Returns the parts for a block format.
    pub fn of(format: Format) -> Self {
        use Format::*;
        let parts = |minimum, fifth_bits, level| Self { minimum, fifth_bits, codes: 16, scale: 2, level };
        match format {
            F32 | F16 | BF16 => panic!("{format:?} has no blocks"),
            Q8_0 | Q8_0X8 => Self { codes: 32, ..parts(false, false, |q| f32::from(q as i8)) },
            Q4_0 | Q4_0X8 => parts(false, false, |q| f32::from(q) - 8.0),
            Q4_1 | Q4_1X8 => parts(true, false, f32::from),
            Q5_0 | Q5_0X8 => parts(false, true, |q| f32::from(q) - 16.0),
            Q5_1 | Q5_1X8 => parts(true, true, f32::from),
            Iq4Nl | Iq4NlX8 => parts(false, false, |q| IQ4_NL[usize::from(q)]),
            Mxfp4 | Mxfp4X8 => Self { scale: 1, ..parts(false, false, |q| E2M1[usize::from(q)]) },
        }
    }

    /// Returns the bytes per block of a row.
    pub fn block_bytes(&self) -> usize {
        self.scale + if self.minimum { 2 } else { 0 } + if self.fifth_bits { 4 } else { 0 } + self.codes
    }
}

pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// Weights under construction: pieces aligned to 64 bytes, as in a file.
#[derive(Default)]
pub struct Weights(Vec<[u64; 8]>);

impl Weights {
    pub fn add(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = 64 * self.0.len();
        for piece in bytes.chunks(64) {
            let mut line = [0u8; 64];
            line[..piece.len()].copy_from_slice(piece);
            self.0.push(bytemuck::cast(line));
        }
        from..from + bytes.len()
    }

    pub fn add_floats(&mut self, values: &[f32]) -> Range<usize> {
        self.add(bytemuck::cast_slice(values))
    }

    pub fn machine(self) -> Machine {
        self.machine_on(device())
    }

    pub fn machine_on(self, device: Box<dyn Device>) -> Machine {
        // SAFETY: the machine owns the bytes, and drops them after the device.
        let gpu = unsafe { Gpu::new(device, bytemuck::cast_slice(&self.0)) }.unwrap();
        Machine { gpu, weights: self.0 }
    }
}

/// A device and the weights on it.
pub struct Machine {
    pub gpu: Gpu,
    weights: Vec<[u64; 8]>,
}

impl Machine {
    pub fn bytes(&self, range: &Range<usize>) -> &'static [u8] {
        let bytes: &[u8] = &bytemuck::cast_slice(&self.weights)[range.clone()];
        // SAFETY: tests drop the machine last; the copy allows borrowing its other fields.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) }
    }

    pub fn floats(&self, range: &Range<usize>) -> &'static [f32] {
        bytemuck::cast_slice(self.bytes(range))
    }

    pub fn buffer(&self, values: &[f32]) -> Buffer {
        let buffer = self.gpu.allocate(4 * values.len()).unwrap();
        write(&buffer, values);
        buffer
    }

    /// Returns a matrix of `rows` rows of `cols` values inside a wider one, whose other values are poisoned.
    pub fn matrix(&self, rng: &mut ChaCha8Rng, rows: usize, cols: usize, aligned: bool, values: &[f32]) -> Matrix {
        let pad = |rng: &mut ChaCha8Rng| if aligned { 4 * rng.random_range(0..3) } else { rng.random_range(0..7usize) };
        let (left, right) = (pad(rng), pad(rng));
        let stride = if aligned { (left + cols + right).next_multiple_of(4) } else { left + cols + right };
        let mut all = vec![f32::NAN; rows * stride];
        for (t, row) in values.chunks(cols.max(1)).enumerate() {
            all[t * stride + left..][..cols].copy_from_slice(row);
        }
        Matrix { buffer: self.buffer(&all), rows, cols, left, stride }
    }

    /// Returns its values once the device is idle, and asserts that the poison around them is intact.
    pub fn read(&mut self, m: &Matrix) -> Vec<f32> {
        self.gpu.finish().unwrap();
        let all = read(&m.buffer, m.rows * m.stride);
        let mut values = Vec::with_capacity(m.rows * m.cols);
        for row in all.chunks(m.stride.max(1)) {
            let (inside, outside): (Vec<_>, Vec<_>) =
                row.iter().enumerate().partition(|(i, _)| (m.left..m.left + m.cols).contains(i));
            assert!(outside.iter().all(|(_, v)| v.is_nan()), "written outside the output");
            values.extend(inside.iter().map(|(_, v)| **v));
        }
        values
    }
}

pub struct Matrix {
    pub buffer: Buffer,
    pub rows: usize,
    pub cols: usize,
    pub left: usize,
    pub stride: usize,
}

impl Matrix {
    pub fn view(&self) -> View<'_> {
        View { buffer: &self.buffer, rows: self.rows, start: self.left, cols: self.cols, stride: self.stride }
    }
}

pub fn write(buffer: &Buffer, values: &[f32]) {
    assert!(4 * values.len() <= buffer.len());
    // SAFETY: the values fit, and the device is idle.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), buffer.contents(), 4 * values.len()) }
}

pub fn read(buffer: &Buffer, n: usize) -> Vec<f32> {
    assert!(4 * n <= buffer.len());
    // SAFETY: the values exist, and the device is idle.
    unsafe { std::slice::from_raw_parts(buffer.contents().cast::<f32>(), n) }.to_vec()
}

/// Asserts that values differ by at most `tolerance` times `scale`, the magnitude of the summands.
pub fn close(what: &str, got: &[f32], want: &[f32], scale: impl Fn(usize) -> f32, tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs() / scale(i).max(w.abs()).max(f32::MIN_POSITIVE);
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {w} (error {error:e} of {tolerance:e})");
    }
}

/// Returns a random matrix: its encoded bytes, and its values by row.
pub fn weight(rng: &mut ChaCha8Rng, format: Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let values = random(rng, rows * cols, 1.0);
    let halves = |values: &[f32]| values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    match format {
        Format::F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), values),
        Format::F16 => (halves(&values), values.iter().map(|v| f16::from_f32(*v).to_f32()).collect()),
        Format::BF16 => (
            values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
        ),
        _ => quantized(rng, format, rows, cols),
    }
}

/// Returns random blocks, decoded as described in docs/file-format.md.
fn quantized(rng: &mut ChaCha8Rng, format: Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let lanes = if format.interleaved() { 8 } else { 1 };
    let parts = Parts::of(format);
    let (blocks, groups) = (cols / 32, rows.div_ceil(lanes));
    let (mut bytes, mut values) = (Vec::new(), vec![0.0; rows * cols]);
    for group in 0..groups {
        for block in 0..blocks {
            let half = |rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, size: f32| {
                let v = f16::from_f32(rng.random_range(-size..size));
                bytes.extend(v.to_le_bytes());
                v.to_f32()
            };
            let power = |rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>| {
                // the two smallest scales are not normal floats
                let e = if rng.random_ratio(1, 20) { rng.random_range(0..2u8) } else { rng.random_range(119..127) };
                bytes.push(e);
                2f64.powi(i32::from(e) - 128) as f32
            };
            let scales: Vec<f32> = (0..lanes)
                .map(|_| if parts.scale == 1 { power(rng, &mut bytes) } else { half(rng, &mut bytes, 0.1) })
                .collect();
            let minima: Vec<f32> =
                (0..lanes).map(|_| if parts.minimum { half(rng, &mut bytes, 1.0) } else { 0.0 }).collect();
            let fifth: Vec<u8> = (0..if parts.fifth_bits { 4 * lanes } else { 0 }).map(|_| rng.random()).collect();
            let codes: Vec<u8> = (0..lanes * parts.codes).map(|_| rng.random()).collect();
            for lane in 0..lanes.min(rows - group * lanes) {
                // byte i of the codes of row `lane`
                let byte = |i: usize| codes[i / 4 * 4 * lanes + 4 * lane + i % 4];
                let row = &mut values[(group * lanes + lane) * cols + 32 * block..][..32];
                for (i, v) in row.iter_mut().enumerate() {
                    let mut q = match (parts.codes, i) {
                        (32, _) => byte(i),
                        (_, 0..16) => byte(i) & 15,
                        _ => byte(i - 16) >> 4,
                    };
                    if parts.fifth_bits {
                        let (at, bit) = if lanes == 1 { (i / 8, i % 8) } else { (4 * lane + i % 4, i / 4) };
                        q |= (fifth[at] >> bit & 1) << 4;
                    }
                    *v = scales[lane] * (parts.level)(q) + minima[lane];
                }
            }
            bytes.extend(fifth);
            bytes.extend(codes);
        }
    }
    (bytes, values)
}

pub fn matrix_weight<'a>(format: Format, rows: usize, cols: usize, bytes: &'a [u8]) -> Weight<'a> {
    Weight { format, rows, cols, bytes }
}
