//! The Mamba heads.

use crate::{Binding, Buffer, Constants, Gpu, View, ops::whole};

/// The arguments of [`Gpu::conv_silu`].
pub struct Conv<'a> {
    /// Input `[tokens, channels]`.
    pub u: View<'a>,
    /// `[channels, taps]`, the last tap for the current token.
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
}

/// The arguments of [`Gpu::scan`].
pub struct Scan<'a> {
    /// Δ before its bias and softplus `[tokens, channels]`.
    pub dt: View<'a>,
    /// `[channels]`
    pub dt_bias: &'a [f32],
    /// The convolution's output `[tokens, channels]`.
    pub u: View<'a>,
    /// `[tokens, channels]`
    pub gate: View<'a>,
    /// B `[tokens, states]`.
    pub b: View<'a>,
    /// C `[tokens, states]`.
    pub c: View<'a>,
    /// A `[channels, states]`.
    pub a: &'a [f32],
    /// D `[channels]`.
    pub d: &'a [f32],
}

impl Gpu {
    /// Maximum number of states per channel in [`Gpu::scan`].
    pub const MAX_STATES: usize = 32;

    /// out = silu(conv(u)); `state [taps − 1, channels]` holds the inputs before the first token, and `next` receives
    /// the last ones.
    pub fn conv_silu(&mut self, a: &Conv<'_>, state: &Buffer, next: &Buffer, out: View<'_>) {
        let (channels, tokens) = (a.u.cols, a.u.rows);
        let taps = a.weight.len() / channels;
        assert!(taps > 0 && a.weight.len() == taps * channels, "conv: the weight has no whole taps");
        assert!([state.len(), next.len()] == [4 * (taps - 1) * channels; 2], "conv: the state has the wrong size");
        assert!(out.cols == channels && out.rows == tokens, "conv: shapes differ");
        assert!(a.bias.is_none_or(|b| b.len() == channels), "conv: the bias has the wrong size");
        let constants = Constants { taps: taps as u32, ..Constants::default() };
        let weight = self.weight(a.weight);
        let bias = a.bias.map_or_else(|| weight.clone(), |b| self.weight(b));
        let args = [channels, tokens, a.u.stride, out.stride, usize::from(a.bias.is_some())].map(|n| n as u32);
        let (state, next) = (whole(state, false), whole(next, true));
        let bindings = [a.u.read(), weight, bias, state.clone(), next.clone(), out.write()];
        self.each("conv_silu", constants, &bindings, args, channels, tokens);
        if tokens > 1 && taps > 1 {
            self.each("conv_shift", constants, &[a.u.read(), state, next], args, channels, 1);
        }
    }

    /// The selective scan with its D term and gate; `h [channels, states]` is the state before the first token, and
    /// `next` receives the one after the last. Long texts are scanned in parallel pieces.
    pub fn scan(&mut self, a: &Scan<'_>, h: &Buffer, next: &Buffer, out: View<'_>) {
        const PIECE: usize = 32;
        const THREADS: usize = 128;
        let (tokens, channels, states) = (out.rows, out.cols, a.b.cols);
        assert!([a.dt.cols, a.u.cols, a.gate.cols, a.dt_bias.len(), a.d.len()] == [channels; 5], "scan: widths differ");
        assert!([a.dt.rows, a.u.rows, a.gate.rows, a.b.rows, a.c.rows] == [tokens; 5], "scan: tokens differ");
        assert!(a.a.len() == channels * states, "scan: A has the wrong size");
        assert!([h.len(), next.len()] == [4 * a.a.len(); 2], "scan: the state has the wrong size");
        assert!(a.c.cols == states && a.b.stride == a.c.stride, "scan: B and C differ");
        assert!(states <= Self::MAX_STATES, "scan: {states} states per channel are too many");
        let lanes = states.next_power_of_two();
        let constants = Constants { states: states as u32, lanes: lanes as u32, ..Constants::default() };
        let pieces = if tokens < 2 * PIECE { 1 } else { tokens.div_ceil(PIECE) };
        let piece = if pieces == 1 { tokens } else { PIECE };
        let strides = [a.dt.stride, a.u.stride, a.gate.stride, a.b.stride, out.stride];
        let sizes = [channels, tokens, piece].into_iter().chain(strides).chain([usize::from(pieces == 1)]);
        let mut args = [0u32; 9];
        args.iter_mut().zip(sizes).for_each(|(to, n)| *to = n as u32);
        let [dt, dt_bias, u] = [a.dt.read(), self.weight(a.dt_bias), a.u.read()];
        let [b, c, rates, d] = [a.b.read(), a.c.read(), self.weight(a.a), self.weight(a.d)];

        let (mut starts, next) = (whole(h, false), whole(next, true));
        if pieces > 1 {
            let bytes = pieces * h.len();
            let (Some(lasts), Some(decays)) = (self.scratch(0, bytes), self.scratch(1, bytes)) else { return };
            let [lasts, decays] = [lasts, decays].map(|b| whole(&b, true));
            let bindings = [&dt, &dt_bias, &u, &b, &rates, &lasts, &decays].map(Clone::clone);
            let groups = [(channels * states).div_ceil(THREADS) as u32, pieces as u32, 1];
            self.launch("scan_local", constants, &bindings, args, groups, THREADS as u32, 0);
            let bindings = [lasts.clone(), decays, starts, next.clone()];
            let n = channels * states;
            self.each("scan_carry", constants, &bindings, [n as u32, pieces as u32], n, 1);
            starts = Binding { writable: false, ..lasts };
        }
        let bindings = [dt, dt_bias, u, a.gate.read(), b, c, rates, d, starts, next, out.write()];
        let groups = [(channels * lanes).div_ceil(THREADS) as u32, pieces as u32, 1];
        self.launch("scan", constants, &bindings, args, groups, THREADS as u32, 0);
    }
}
