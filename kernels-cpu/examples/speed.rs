use hymba_kernels_cpu::*;
use std::num::NonZeroUsize;
use std::time::Instant;
fn main() {
    let (rows, cols) = (32 * 1024 * 4, 1600);
    let buf: Vec<u8> = (0..rows * cols / 32 * 34usize).map(|i| if i % 2 == 0 { (i / 7) as u8 } else { 0x20 }).collect();
    for threads in [1, 2] {
        let mut cpu = Cpu::new(NonZeroUsize::new(threads).unwrap());
        let big = vec![1u8; 400 << 20];
        let bw = cpu.read_bandwidth(&big, 5);
        println!("threads {threads} bw {:.2} GB/s", bw / 1e9);
        for dtype in [WeightType::HK_Q4_0, WeightType::HK_Q4_0X8, WeightType::HK_Q8_0, WeightType::HK_Q8_0X8] {
            let per = if matches!(dtype, WeightType::HK_Q4_0 | WeightType::HK_Q4_0X8) { 18 } else { 34 };
            let bytes = &buf[..rows * cols / 32 * per];
            let w = Weight { dtype, rows, cols, bytes };
            for tokens in [1usize, 64] {
                let (rows, w) = if tokens > 1 { (4096, Weight { rows: 4096, bytes: &bytes[..4096 * cols / 32 * per], ..w }) } else { (rows, w) };
                let x = vec![0.5f32; tokens * cols];
                let mut y = vec![0f32; tokens * rows];
                let mut best = f64::MAX;
                for _ in 0..5 {
                    let s = Instant::now();
                    cpu.matmul(w, Mat::new(&x, tokens, 0, cols, cols), MatMut::new(&mut y, tokens, 0, rows, rows), false);
                    best = best.min(s.elapsed().as_secs_f64());
                }
                println!("  {dtype:?} tokens {tokens}: {:.2} GB/s, {:.1} GMAC/s", w.bytes.len() as f64 / best / 1e9, (rows * cols * tokens) as f64 / best / 1e9);
            }
        }
    }
}
