//! Measures the memory bandwidth of each kernel on an NVIDIA GPU, in the shape of Hymba-1.5B. It checks the access patterns of
//! the shaders and says nothing about Apple's GPUs. Needs the library of cuda/build.sh, named by `HYMBA_METAL_CUDA`.
//!
//! Each kernel is launched on several copies of its weights or cache, which together exceed the GPU's caches. Bytes are the
//! minimum that a kernel must read and write.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{env, path::Path};

use common::{Machine, Parts, Weights, matrix_weight};
use hymba_kernels_metal::{Attention, Buffer, Conv, Format, KvSpan, Scan, View};
use hymba_metal_emulator::{Cuda, Stopwatch};

/// Bytes of all copies together.
const TOTAL: usize = 320 << 20;
const HIDDEN: usize = 1600;
const INNER: usize = 3200;
const STATES: usize = 16;

struct Bench {
    stopwatch: Stopwatch,
    limit: f64,
}

impl Bench {
    /// Launches the kernel with each copy; prints a row, and returns the seconds per launch.
    fn time(
        &self,
        m: &mut Machine,
        name: &str,
        bytes: usize,
        copies: usize,
        launch: impl Fn(&mut Machine, usize),
    ) -> f64 {
        self.stopwatch.record();
        (0..copies).for_each(|i| launch(m, i));
        m.gpu.finish().unwrap();
        let (_, seconds) = self.stopwatch.time(10).unwrap();
        let rate = bytes as f64 / seconds;
        println!(
            "| {name} | {:.2} | {:.1} | {:.0} | {:.0} % |",
            bytes as f64 / 1e6,
            1e6 * seconds,
            rate / 1e9,
            100.0 * rate / self.limit
        );
        seconds
    }

    fn product(&self, format: Format, name: &str, rows: usize, cols: usize) -> f64 {
        let stored = if format.interleaved() { rows.next_multiple_of(8) } else { rows };
        let row_bytes = match format {
            Format::F32 => 4 * cols,
            Format::F16 | Format::BF16 => 2 * cols,
            _ => Parts::of(format).block_bytes() * cols / 32,
        };
        let bytes = stored * row_bytes;
        let copies = TOTAL.div_ceil(bytes).clamp(2, 1000);
        let mut weights = Weights::default();
        let noise: Vec<u8> = (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f).collect();
        let all: Vec<_> = (0..copies).map(|_| weights.add(&noise)).collect();
        let mut m = weights.machine_on(device(&self.stopwatch));
        let (x, y) = (m.buffer(&vec![1.0; cols]), m.buffer(&vec![0.0; rows]));
        self.time(&mut m, &format!("{name} {rows}x{cols} {format:?}"), bytes + 4 * (rows + cols), copies, |m, i| {
            let w = matrix_weight(format, rows, cols, m.bytes(&all[i]));
            m.gpu.matmul(w, row(&x, cols), row(&y, rows), false, true);
        })
    }
}

fn row(buffer: &Buffer, cols: usize) -> View<'_> {
    View { buffer, rows: 1, start: 0, cols, stride: cols }
}

fn device(stopwatch: &Stopwatch) -> Box<dyn hymba_kernels_metal::Device> {
    Box::new(stopwatch.device())
}

fn main() {
    let Some(path) = env::var_os("HYMBA_METAL_CUDA") else {
        eprintln!("bandwidth: HYMBA_METAL_CUDA must name the library that cuda/build.sh makes");
        std::process::exit(2);
    };
    let cuda = Cuda::open(Path::new(&path)).unwrap();
    let stopwatch = cuda.stopwatch();
    let limit = stopwatch.read_rate().unwrap();
    println!("{}: a plain kernel reads {:.0} GB/s\n", hymba_kernels_metal::Device::name(&cuda), limit / 1e9);
    println!("| kernel | MB | µs | GB/s | share |\n|---|---|---|---|---|");
    let b = Bench { stopwatch, limit };

    for format in [
        Format::Q4_0X8,
        Format::Q8_0X8,
        Format::Q4_1X8,
        Format::Q5_0X8,
        Format::Q5_1X8,
        Format::Iq4NlX8,
        Format::Mxfp4X8,
    ] {
        let mut token = 0.0;
        token += 17.0 * b.product(format, "in_proj (producer)", 8960, HIDDEN);
        token += 15.0 * b.product(format, "in_proj (consumer)", 8000, HIDDEN);
        token += 32.0 * b.product(format, "x_proj", 132, INNER);
        token += 32.0 * b.product(Format::F16, "dt_proj", INNER, 100);
        token += 32.0 * b.product(format, "out_proj", HIDDEN, INNER);
        token += 64.0 * b.product(format, "ffn gate, up", 5504, HIDDEN);
        token += 32.0 * b.product(format, "ffn down", HIDDEN, 5504);
        token += b.product(format, "head", 32001, HIDDEN);
        println!("| all products of a token, {format:?} | | {:.0} | | |", 1e6 * token);
    }
    for format in [
        Format::Q4_0,
        Format::Q8_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Iq4Nl,
        Format::Mxfp4,
        Format::F16,
    ] {
        b.product(format, "in_proj (producer)", 8960, HIDDEN);
    }

    scan_and_conv(&b);
    for rows in [1152, 8320] {
        attention(&b, rows);
    }
}

fn scan_and_conv(b: &Bench) {
    let copies = 200;
    let mut weights = Weights::default();
    let rates: Vec<_> = (0..copies).map(|_| weights.add_floats(&vec![-1.0; INNER * STATES])).collect();
    let (ones, taps) = (weights.add_floats(&vec![1.0; INNER]), weights.add_floats(&vec![0.5; 4 * INNER]));
    let mut m = weights.machine_on(device(&b.stopwatch));
    let [states, next_states] =
        [0; 2].map(|_| (0..copies).map(|_| m.buffer(&vec![0.1; INNER * STATES])).collect::<Vec<_>>());
    let [pasts, next_pasts] = [0; 2].map(|_| (0..copies).map(|_| m.buffer(&vec![0.1; 3 * INNER])).collect::<Vec<_>>());
    let [dt, u, gate, y] = [0; 4].map(|_| m.buffer(&vec![0.1; INNER]));
    let bc = m.buffer(&[0.1; 2 * STATES]);
    b.time(&mut m, "scan, one token", 4 * (3 * INNER * STATES + 6 * INNER), copies, |m, i| {
        let args = Scan {
            dt: row(&dt, INNER),
            dt_bias: m.floats(&ones),
            u: row(&u, INNER),
            gate: row(&gate, INNER),
            b: View { cols: STATES, ..row(&bc, 2 * STATES) },
            c: View { cols: STATES, start: STATES, ..row(&bc, 2 * STATES) },
            a: m.floats(&rates[i]),
            d: m.floats(&ones),
        };
        m.gpu.scan(&args, &states[i], &next_states[i], row(&y, INNER));
    });
    b.time(&mut m, "conv and SiLU, one token", 4 * (3 + 3 + 4 + 2) * INNER, copies, |m, i| {
        let args = Conv { u: row(&u, INNER), weight: m.floats(&taps), bias: None };
        m.gpu.conv_silu(&args, &pasts[i], &next_pasts[i], row(&y, INNER));
    });
}

fn attention(b: &Bench, rows: usize) {
    let (heads, kv_heads, key_dim, value_dim) = (25, 5, 64, 128);
    let bytes = 2 * rows * kv_heads * (key_dim + value_dim);
    let copies = TOTAL.div_ceil(bytes);
    let mut m = Weights::default().machine_on(device(&b.stopwatch));
    let caches: Vec<_> = (0..copies)
        .map(|_| [key_dim, value_dim].map(|dim| m.gpu.allocate(2 * rows * kv_heads * dim).unwrap()))
        .collect();
    let chunk = [key_dim, value_dim].map(|dim| m.gpu.allocate(2 * kv_heads * dim).unwrap());
    let (q, y) = (m.buffer(&vec![0.1; heads * key_dim]), m.buffer(&vec![0.0; heads * value_dim]));
    let none = KvSpan::default();
    let visible = [[KvSpan { rows: rows as u32 - 1, ..none }, none, none, KvSpan { rows: 1, chunk: 1, ..none }]];
    // two launches: slices, and combining them
    b.time(&mut m, &format!("attention, {rows} rows (each of two launches)"), bytes / 2, copies, |m, i| {
        let args = Attention {
            q: row(&q, heads * key_dim),
            heads,
            kv_heads,
            key_dim,
            value_dim,
            cache: [&caches[i][0], &caches[i][1]],
            chunk: [&chunk[0], &chunk[1]],
            half: true,
            visible: &visible,
            decode: true,
        };
        m.gpu.attention(&args, row(&y, heads * value_dim));
    });
}
