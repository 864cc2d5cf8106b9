/* The Mamba heads: causal convolution and selective scan.
 *
 * Requires: wide-inl.h, math-inl.h. */
#ifndef HYMBA_SSM_INL_H
#define HYMBA_SSM_INL_H

HK_INLINE vf lanes_load(const float *p, size_t lanes) { return lanes == VF_LANES ? vf_load(p) : vf_load_n(p, lanes); }
HK_INLINE void lanes_store(float *p, size_t lanes, vf x) {
    if (lanes == VF_LANES)
        vf_store(p, x);
    else
        vf_store_n(p, lanes, x);
}

/* Per tile. Channels are contiguous and tokens are pages apart: with few tokens hardware prefetch works, and the data
 * of the scan stays in L1. */
#define SSM_TOKENS 16
#define LINE_FLOATS 16 /* per cache line */
_Static_assert(SSM_TOKENS <= LINE_FLOATS, "as many tokens' lines are prefetched as a line has channels");

/* ---- convolution: one channel per lane ---- */

_Static_assert(HK_CONV_TAPS <= VF_LANES, "the taps of a channel are a vector before they are transposed");

HK_INLINE void conv_lanes(const hk_conv *a, size_t c, size_t lanes, size_t t0, size_t tokens, size_t taps) {
    const size_t past = taps - 1;
    vf w[VF_LANES], seen[VF_LANES];
    for (size_t i = 0; i < VF_LANES; i++) w[i] = i < lanes ? vf_load_n(a->weight + (c + i) * taps, taps) : vf_zero();
    vf_transpose(w);
    const float *state = t0 == 0 ? a->state : a->next;
    for (size_t j = 0; j < past; j++) seen[j] = lanes_load(state + j * a->state_stride + c, lanes);
    const vf bias = a->bias ? lanes_load(a->bias + c, lanes) : vf_zero();
    for (size_t t = t0; t < t0 + tokens; t++) {
        seen[past] = lanes_load(a->u + t * a->u_stride + c, lanes);
        vf sum = bias;
        for (size_t j = 0; j < taps; j++) sum = vf_fma(w[j], seen[j], sum);
        for (size_t j = 0; j < past; j++) seen[j] = seen[j + 1];
        lanes_store(a->out + t * a->out_stride + c, lanes, vf_silu(sum));
    }
    for (size_t j = 0; j < past; j++) lanes_store(a->next + j * a->state_stride + c, lanes, seen[j]);
}

static void conv_silu(const hk_conv *a) {
    for (size_t t = 0; t < a->tokens; t += SSM_TOKENS) {
        const size_t tokens = a->tokens - t < SSM_TOKENS ? a->tokens - t : SSM_TOKENS;
        for (size_t c = 0; c < a->channels; c += VF_LANES) {
            const size_t lanes = a->channels - c < VF_LANES ? a->channels - c : VF_LANES;
            if (a->taps == 4)
                conv_lanes(a, c, lanes, t, tokens, 4);
            else
                conv_lanes(a, c, lanes, t, tokens, a->taps);
        }
    }
}

/* ---- selective scan: eight channels at a time, one state per lane ---- */

/* Some states of one channel, over the tokens of a tile. Per-token values are VF_LANES apart. */
typedef struct scan_tile {
    const float *rate, *h; /* [states] */
    float *next;           /* [states] */
    const float *b, *c;    /* [tokens, states] */
    size_t bc_stride;
    const float *delta, *drive; /* [tokens]: Δ, and Δ u */
    size_t tokens;
    vf *parts; /* [tokens]: contributions to y, to be summed over the lanes */
} scan_tile;

HK_INLINE void scan_states(const scan_tile *s, size_t states, int first) {
    const vf rate = vf_mul(lanes_load(s->rate, states), vf_set1(LOG2_E)); /* e^x = 2^(x log2 e) */
    vf h = lanes_load(s->h, states);
    for (size_t t = 0, at = 0; t < s->tokens; t++, at += VF_LANES) {
        const vf drive = vf_mul(vf_set1(s->drive[at]), lanes_load(s->b + t * s->bc_stride, states));
        h = vf_fma(vf_exp2(vf_mul(rate, vf_set1(s->delta[at]))), h, drive);
        const vf c = lanes_load(s->c + t * s->bc_stride, states);
        s->parts[at] = first ? vf_mul(h, c) : vf_fma(h, c, s->parts[at]);
    }
    lanes_store(s->next, states, h);
}

/* The same for all VW_LANES states of a channel: adding their two halves equals the result of two calls. */
HK_INLINE void scan_states_wide(const scan_tile *s) {
    const vw rate = vw_mul(vw_load(s->rate), vw_set1(LOG2_E));
    vw h = vw_load(s->h);
    for (size_t t = 0, at = 0; t < s->tokens; t++, at += VF_LANES) {
        const vw drive = vw_mul(vw_set1(s->drive[at]), vw_load(s->b + t * s->bc_stride));
        h = vw_fma(vw_exp2(vw_mul(rate, vw_set1(s->delta[at]))), h, drive);
        const float *c = s->c + t * s->bc_stride;
        s->parts[at] = vf_fma(vw_high(h), vf_load(c + VF_LANES), vf_mul(vw_low(h), vf_load(c)));
    }
    vw_store(s->next, h);
}

/* Tokens are pages apart, too many for hardware prefetch: prefetches the next line of one. */
HK_INLINE void prefetch_scan(const hk_scan *a, size_t t, size_t c) {
    prefetch_l1(a->dt + t * a->dt_stride + c);
    prefetch_l1(a->u + t * a->u_stride + c);
    prefetch_l1(a->gate + t * a->gate_stride + c);
    prefetch_l1(a->y + t * a->y_stride + c);
}

/* A single token reads every channel's states once: prefetches those of later channels, unless they belong to another
 * thread. */
HK_INLINE void prefetch_states(const hk_scan *a, size_t c) {
    enum { AHEAD = 4 * VF_LANES };
    if (c + AHEAD + VF_LANES > a->channels) return;
    const size_t from = (c + AHEAD) * a->states, to = from + VF_LANES * a->states;
    for (size_t i = from; i < to; i += LINE_FLOATS)
        prefetch_l1(a->a + i), prefetch_l1(a->h + i), prefetch_l1(a->next + i);
}

HK_INLINE void scan_lanes(const hk_scan *a, size_t c, size_t lanes, size_t t0, size_t tokens, size_t states) {
    float delta[SSM_TOKENS * VF_LANES], drive[SSM_TOKENS * VF_LANES];
    vf parts[SSM_TOKENS * VF_LANES];
    const vf bias = lanes_load(a->dt_bias + c, lanes), d = lanes_load(a->d + c, lanes);
    for (size_t t = 0; t < tokens; t++) {
        const vf dt = lanes_load(a->dt + (t0 + t) * a->dt_stride + c, lanes);
        const vf step = vf_softplus(vf_add(dt, bias));
        vf_store(delta + t * VF_LANES, step);
        vf_store(drive + t * VF_LANES, vf_mul(step, lanes_load(a->u + (t0 + t) * a->u_stride + c, lanes)));
        for (size_t i = lanes; i < VF_LANES; i++) parts[t * VF_LANES + i] = vf_zero();
    }
    const float *b = a->b + t0 * a->bc_stride, *out = a->c + t0 * a->bc_stride, *h = t0 == 0 ? a->h : a->next;
    for (size_t i = 0; i < lanes; i++) {
        /* one token per channel, so as not to exceed the rate of memory */
        const size_t next = (c + i) % LINE_FLOATS;
        if (tokens > 1 && next < tokens) prefetch_scan(a, t0 + next, c - c % LINE_FLOATS + LINE_FLOATS);
        for (size_t n = 0, some; n < states; n += some) {
            const size_t at = (c + i) * states + n;
            const scan_tile tile = {a->a + at,    h + at,    a->next + at, b + n,  out + n,
                                    a->bc_stride, delta + i, drive + i,    tokens, parts + i};
            some = states == VW_LANES ? VW_LANES : VF_LANES;
            if (some == VW_LANES)
                scan_states_wide(&tile);
            else if (states - n >= VF_LANES)
                scan_states(&tile, VF_LANES, n == 0);
            else
                scan_states(&tile, states - n, n == 0);
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        const vf u = lanes_load(a->u + (t0 + t) * a->u_stride + c, lanes);
        const vf gate = lanes_load(a->gate + (t0 + t) * a->gate_stride + c, lanes);
        const vf y = vf_fma(d, u, vf_sums(parts + t * VF_LANES));
        lanes_store(a->y + (t0 + t) * a->y_stride + c, lanes, vf_mul(y, vf_silu(gate)));
    }
}

static void scan(const hk_scan *a) {
    for (size_t t = 0; t < a->tokens; t += SSM_TOKENS) {
        const size_t tokens = a->tokens - t < SSM_TOKENS ? a->tokens - t : SSM_TOKENS;
        for (size_t c = 0; c < a->channels; c += VF_LANES) {
            if (a->tokens == 1) prefetch_states(a, c);
            if (a->channels - c < VF_LANES)
                scan_lanes(a, c, a->channels - c, t, tokens, a->states);
            else if (a->tokens == 1 && a->states == VW_LANES)
                scan_lanes(a, c, VF_LANES, 0, 1, VW_LANES); /* no loops left */
            else if (a->states == VW_LANES)
                scan_lanes(a, c, VF_LANES, t, tokens, VW_LANES);
            else
                scan_lanes(a, c, VF_LANES, t, tokens, a->states);
        }
    }
}

#endif
