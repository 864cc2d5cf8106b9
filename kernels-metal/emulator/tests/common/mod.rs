//! What the tests share: a device, weights on it, poisoned matrices, comparison.
#![allow(dead_code)]

use std::ops::Range;

use half::{bf16, f16};
use hymba_kernels_metal::{Buffer, Device, Format, Gpu, View, Weight};
use hymba_metal_emulator::device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const FORMATS: [Format; 7] =
    [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q8_0X8, Format::Q4_0X8];

pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// Weights to be: pieces that begin at multiples of 64 bytes, as in a file.
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
        // SAFETY: the machine keeps the bytes, and drops them after the device.
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
        // SAFETY: tests drop the machine last; this frees its other fields to be borrowed.
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

    /// A matrix of `rows` rows of `cols` values somewhere in a wider one, whose other values are poison.
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

    /// Its values, once the device is done and the poison around them is seen unhurt.
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
    // SAFETY: the values fit, and the device is not at work.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), buffer.contents(), 4 * values.len()) }
}

pub fn read(buffer: &Buffer, n: usize) -> Vec<f32> {
    assert!(4 * n <= buffer.len());
    // SAFETY: the values are there, and the device is not at work.
    unsafe { std::slice::from_raw_parts(buffer.contents().cast::<f32>(), n) }.to_vec()
}

/// Values no further apart than `tolerance` times what `scale` says of each: the size of what was summed up.
pub fn close(what: &str, got: &[f32], want: &[f32], scale: impl Fn(usize) -> f32, tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs() / scale(i).max(w.abs()).max(f32::MIN_POSITIVE);
        assert!(error <= tolerance, "{what}: value {i} is {g}, not {w} (error {error:e} of {tolerance:e})");
    }
}

/// A random matrix in a format: its bytes, and its values row after row.
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

/// Random blocks, decoded as docs/file-format.md says.
fn quantized(rng: &mut ChaCha8Rng, format: Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let lanes = if format.interleaved() { 8 } else { 1 };
    let bytes_of_block = if matches!(format, Format::Q8_0 | Format::Q8_0X8) { 32 } else { 16 };
    let (blocks, groups) = (cols / 32, rows.div_ceil(lanes));
    let (mut bytes, mut values) = (Vec::new(), vec![0.0; rows * cols]);
    for group in 0..groups {
        for block in 0..blocks {
            let scales: Vec<f16> = (0..lanes).map(|_| f16::from_f32(rng.random_range(-0.1..0.1))).collect();
            let data: Vec<u8> = (0..lanes * bytes_of_block).map(|_| rng.random()).collect();
            for lane in 0..lanes.min(rows - group * lanes) {
                // byte i of the block of row `lane`
                let byte = |i: usize| if lanes == 1 { data[i] } else { data[i / 4 * 32 + 4 * lane + i % 4] };
                let row = &mut values[(group * lanes + lane) * cols + 32 * block..][..32];
                for (i, v) in row.iter_mut().enumerate() {
                    let q = if bytes_of_block == 32 {
                        f32::from(byte(i) as i8)
                    } else {
                        f32::from(if i < 16 { byte(i) & 15 } else { byte(i - 16) >> 4 }) - 8.0
                    };
                    *v = scales[lane].to_f32() * q;
                }
            }
            scales.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
            bytes.extend(data);
        }
    }
    (bytes, values)
}

pub fn matrix_weight<'a>(format: Format, rows: usize, cols: usize, bytes: &'a [u8]) -> Weight<'a> {
    Weight { format, rows, cols, bytes }
}
