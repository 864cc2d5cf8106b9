// The Mamba heads: causal convolution and selective scan.

struct ConvArgs {
    uint channels, tokens, u_stride, y_stride, has_bias;
};

/// y = silu(conv(u) + bias); state [TAPS - 1, channels] holds the inputs before the first token, oldest first. One
/// thread per channel and token. With one token `next` receives the state after it; with more, `conv_shift` computes
/// it. Uses TAPS.
kernel void conv_silu(device const float *u [[buffer(0)]], device const float *weight [[buffer(1)]],
                      device const float *bias [[buffer(2)]], device const float *state [[buffer(3)]],
                      device float *next [[buffer(4)]], device float *y [[buffer(5)]], constant ConvArgs &a [[buffer(6)]],
                      uint3 position [[thread_position_in_grid]]) {
    const uint c = position.x, t = position.y, past = TAPS - 1;
    if (c >= a.channels) return;
    device const float *w = weight + c * TAPS;
    float sum = a.has_bias != 0 ? bias[c] : 0.0f;
    for (uint j = 0; j < TAPS; j++) {
        const float in = t + j < past ? state[(t + j) * a.channels + c] : u[ulong(t + j - past) * a.u_stride + c];
        sum += w[j] * in;
    }
    y[ulong(t) * a.y_stride + c] = silu(sum);
    if (a.tokens == 1 && past > 0) {
        for (uint j = 0; j + 1 < past; j++) next[j * a.channels + c] = state[(j + 1) * a.channels + c];
        next[(past - 1) * a.channels + c] = u[c];
    }
}

/// The state after `tokens` inputs: one thread per channel. Uses TAPS.
kernel void conv_shift(device const float *u [[buffer(0)]], device const float *state [[buffer(1)]],
                       device float *next [[buffer(2)]], constant ConvArgs &a [[buffer(3)]],
                       uint3 position [[thread_position_in_grid]]) {
    const uint c = position.x, past = TAPS - 1;
    if (c >= a.channels) return;
    for (uint j = 0; j < past; j++) {
        const uint from = j + a.tokens; // counted from the start of the old state
        next[j * a.channels + c] =
            from < past ? state[from * a.channels + c] : u[ulong(from - past) * a.u_stride + c];
    }
}

// The scan: delta = softplus(dt + dt_bias);  h = exp(delta * A) * h + delta * u * B;  y = (h . C + D * u) * silu(gate).
// LANES lanes process a channel, one state each. Long texts are split into pieces that are scanned in parallel:
// `scan_local` scans each from zero, `scan_carry` computes from that the state before each piece, and `scan` starts
// from it.

struct ScanArgs {
    uint channels, tokens, piece; // a piece has `piece` tokens, the last one the rest
    uint dt_stride, u_stride, gate_stride, bc_stride, y_stride;
    uint keep; // 1: the only piece; `last` receives its final state
};

/// starts [pieces, channels, STATES]: the state before each piece; last [channels, STATES]. Threadgroups: [channels /
/// (threads / LANES), pieces]. Uses STATES, LANES.
kernel void scan(device const float *dt [[buffer(0)]], device const float *dt_bias [[buffer(1)]],
                 device const float *u [[buffer(2)]], device const float *gate [[buffer(3)]],
                 device const float *b [[buffer(4)]], device const float *c [[buffer(5)]],
                 device const float *rates [[buffer(6)]], device const float *d [[buffer(7)]],
                 device const float *starts [[buffer(8)]], device float *last [[buffer(9)]],
                 device float *y [[buffer(10)]], constant ScanArgs &a [[buffer(11)]], uint3 position [[thread_position_in_grid]],
                 uint3 group [[threadgroup_position_in_grid]]) {
    const uint channel = position.x / LANES, n = position.x % LANES;
    const bool live = channel < a.channels, holds = live && n < STATES;
    const uint at = live ? channel : 0, state = n < STATES ? n : 0;
    const ulong start = (ulong(group.y) * a.channels + at) * STATES + state;
    const float rate = rates[at * STATES + state], bias = dt_bias[at], skip = d[at];
    float h = holds ? starts[start] : 0.0f;
    const uint end = min(a.tokens, (group.y + 1) * a.piece);
    for (uint t = group.y * a.piece; t < end; t++) {
        const float delta = softplus(dt[ulong(t) * a.dt_stride + at] + bias), in = u[ulong(t) * a.u_stride + at];
        h = precise::exp(delta * rate) * h + delta * in * b[ulong(t) * a.bc_stride + state];
        float sum = holds ? h * c[ulong(t) * a.bc_stride + state] : 0.0f;
        for (ushort step = LANES / 2; step > 0; step /= 2) sum += simd_shuffle_xor(sum, step);
        if (live && n == 0) {
            y[ulong(t) * a.y_stride + at] = (sum + skip * in) * silu(gate[ulong(t) * a.gate_stride + at]);
        }
    }
    if (holds && a.keep != 0) last[start] = h;
}

/// Scans each piece from zero: its final state, and the product of its decays; both [pieces, channels, STATES]. One
/// thread per state of a channel, threadgroups as in `scan` with LANES = STATES.
kernel void scan_local(device const float *dt [[buffer(0)]], device const float *dt_bias [[buffer(1)]],
                       device const float *u [[buffer(2)]], device const float *b [[buffer(3)]],
                       device const float *rates [[buffer(4)]], device float *lasts [[buffer(5)]],
                       device float *decays [[buffer(6)]], constant ScanArgs &a [[buffer(7)]],
                       uint3 position [[thread_position_in_grid]], uint3 group [[threadgroup_position_in_grid]]) {
    const uint channel = position.x / STATES, state = position.x % STATES;
    if (channel >= a.channels) return;
    const float rate = rates[position.x], bias = dt_bias[channel];
    float h = 0.0f, sum = 0.0f;
    const uint end = min(a.tokens, (group.y + 1) * a.piece);
    for (uint t = group.y * a.piece; t < end; t++) {
        const float delta = softplus(dt[ulong(t) * a.dt_stride + channel] + bias);
        const float in = u[ulong(t) * a.u_stride + channel];
        h = precise::exp(delta * rate) * h + delta * in * b[ulong(t) * a.bc_stride + state];
        sum += delta;
    }
    const ulong at = ulong(group.y) * a.channels * STATES + position.x;
    lasts[at] = h;
    decays[at] = precise::exp(sum * rate);
}

struct CarryArgs {
    uint states, pieces; // states: over all channels
};

/// Computes the state before each piece from h, the state before the first; `next` receives the state after the last.
/// One thread per state.
kernel void scan_carry(device float *lasts [[buffer(0)]], device const float *decays [[buffer(1)]],
                       device const float *h [[buffer(2)]], device float *next [[buffer(3)]],
                       constant CarryArgs &a [[buffer(4)]],
                       uint3 position [[thread_position_in_grid]]) {
    if (position.x >= a.states) return;
    float before = h[position.x];
    for (uint piece = 0; piece < a.pieces; piece++) {
        const ulong at = ulong(piece) * a.states + position.x;
        const float last = lasts[at];
        lasts[at] = before;
        before = decays[at] * before + last;
    }
    next[position.x] = before;
}
