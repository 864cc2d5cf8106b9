//! Fast vectorizable exponentials, for evaluations that use the logits of every token.

/// Values accumulated in F32 before they are added to an F64 sum.
const ACCUMULATE: usize = 256;

/// ln Σ eˣ of `logits`.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = logits.chunks(ACCUMULATE).map(|x| sum(x, |x| exp(x - max))).sum();
    f64::from(max) + sum.ln()
}

/// The Kullback-Leibler divergence Σ p·ln(p / q) of the softmax p of `base` and the softmax q of `other`, in nats.
/// `sums` are their [`log_sum_exp`].
pub(super) fn divergence(base: &[f32], other: &[f32], sums: [f64; 2]) -> f64 {
    let [base_sum, other_sum] = sums.map(|v| v as f32);
    let piece = |(a, b): (&[f32], &[f32])| -> f64 {
        let mut lanes = [0.0; LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        let term = |a: f32, b: f32| {
            let (a, b) = (a - base_sum, b - other_sum);
            exp(a) * (a - b)
        };
        for (a, b) in a.iter().zip(b) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(a, b);
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| term(a, b));
        lanes.into_iter().chain(rest).map(f64::from).sum()
    };
    base.chunks(ACCUMULATE).zip(other.chunks(ACCUMULATE)).map(piece).sum()
}

/// Returns the index of the first largest value.
pub(super) fn top(logits: &[f32]) -> usize {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    logits.iter().position(|&v| v == max).unwrap_or(0)
}

const LANES: usize = 8;

fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        lanes.iter_mut().zip(x).for_each(|(lane, &x)| *lane += f(x));
    }
    lanes.into_iter().chain(rest.iter().map(|&x| f(x))).map(f64::from).sum()
}

/// Returns eˣ for x up to about 1, within 3·10⁻⁷, with vectorizable steps; at least e⁻⁸⁷, which is negligible beside 1.
#[inline]
fn exp(x: f32) -> f32 {
    // Adding it leaves an integer in the low bits.
    const ROUND_MAGIC: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4]; // the first has few bits, so that its products are exact
    let x = x.max(-87.0);
    let t = x * std::f32::consts::LOG2_E + ROUND_MAGIC;
    let n = t - ROUND_MAGIC;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = series.into_iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    power * f32::from_bits((t.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
        logits.iter().map(|&v| f64::from(v) - sum.ln()).collect()
    }

    #[test]
    fn exponentials_are_accurate() {
        for i in -87_000..1000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "{x}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn divergence_of_known_logits() {
        let a: Vec<f32> = (0..5003).map(|i| ((i * 7919) % 1009) as f32 / 50.0 - 10.0).collect();
        for size in [1.0, 0.05, 0.0] {
            let b: Vec<f32> =
                a.iter().enumerate().map(|(i, v)| v + size * ((i * 31 % 17) as f32 / 8.0 - 1.0)).collect();
            let [p, q] = [&a, &b].map(|v| exact(v));
            let want: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let sums = [log_sum_exp(&a), log_sum_exp(&b)];
            assert!((sums[0] - (f64::from(a[7]) - p[7])).abs() < 1e-6);
            let got = divergence(&a, &b, sums);
            assert!((got - want).abs() < 1e-6 + 1e-5 * want, "{got} is not {want}");
        }
        assert_eq!(top(&[1.0, 3.0, -2.0, 3.0]), 1);
    }
}
