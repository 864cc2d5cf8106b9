/* The Mamba heads: causal convolution and selective scan, eight channels to a vector. Wider ones than any published
 * model has go to the scalar code. */
#define TAPS_MAX 8
#define STATES_MAX 64

/* weight [lanes, taps] to taps vectors of `lanes` channels */
HK_INLINE void conv_taps(const float *weight, size_t taps, size_t lanes, vf *w) {
    for (size_t j = 0; j < taps; j++) {
        float column[VF_LANES] = {0};
        for (size_t c = 0; c < lanes; c++) column[c] = weight[c * taps + j];
        w[j] = vf_load(column);
    }
}


HK_INLINE vf lanes_load(const float *p, size_t lanes) {
    return lanes == VF_LANES ? vf_load(p) : vf_load_n(p, lanes);
}
HK_INLINE void lanes_store(float *p, size_t lanes, vf x) {
    if (lanes == VF_LANES)
        vf_store(p, x);
    else
        vf_store_n(p, lanes, x);
}

HK_INLINE void conv_lanes(const hk_conv *a, size_t c, size_t lanes, size_t taps) {
    const size_t past = taps - 1;
    vf w[TAPS_MAX], seen[TAPS_MAX];
    conv_taps(a->weight + c * taps, taps, lanes, w);
    for (size_t j = 0; j < past; j++) seen[j] = lanes_load(a->state + j * a->state_stride + c, lanes);
    const vf bias = a->bias ? lanes_load(a->bias + c, lanes) : vf_zero();
    for (size_t t = 0; t < a->tokens; t++) {
        seen[past] = lanes_load(a->u + t * a->u_stride + c, lanes);
        vf sum = bias;
        for (size_t j = 0; j < taps; j++) sum = vf_fma(w[j], seen[j], sum);
        for (size_t j = 0; j < past; j++) seen[j] = seen[j + 1];
        lanes_store(a->out + t * a->out_stride + c, lanes, vf_silu(sum));
    }
    for (size_t j = 0; j < past; j++) lanes_store(a->state + j * a->state_stride + c, lanes, seen[j]);
}

static void conv_silu(const hk_conv *a) {
    if (a->taps > TAPS_MAX) {
        hk_scalar()->conv_silu(a);
        return;
    }
    for (size_t c = 0; c < a->channels; c += VF_LANES) {
        const size_t lanes = a->channels - c < VF_LANES ? a->channels - c : VF_LANES;
        if (a->taps == 4)
            conv_lanes(a, c, lanes, 4);
        else
            conv_lanes(a, c, lanes, a->taps);
    }
}

/* [lanes, states] in memory to `states` vectors of `lanes` channels, and back */
HK_INLINE void states_load(const float *p, size_t states, size_t lanes, vf *out) {
    if (lanes == VF_LANES && states % VF_LANES == 0) {
        for (size_t n = 0; n < states; n += VF_LANES) {
            for (size_t c = 0; c < VF_LANES; c++) out[n + c] = vf_load(p + c * states + n);
            vf_transpose(out + n);
        }
        return;
    }
    conv_taps(p, states, lanes, out);
}
HK_INLINE void states_store(float *p, size_t states, size_t lanes, const vf *in) {
    if (lanes == VF_LANES && states % VF_LANES == 0) {
        for (size_t n = 0; n < states; n += VF_LANES) {
            vf square[VF_LANES];
            for (size_t c = 0; c < VF_LANES; c++) square[c] = in[n + c];
            vf_transpose(square);
            for (size_t c = 0; c < VF_LANES; c++) vf_store(p + c * states + n, square[c]);
        }
        return;
    }
    for (size_t n = 0; n < states; n++) {
        float column[VF_LANES];
        vf_store(column, in[n]);
        for (size_t c = 0; c < lanes; c++) p[c * states + n] = column[c];
    }
}

HK_INLINE void scan_lanes(const hk_scan *a, size_t c, size_t lanes, size_t states) {
    vf rate[STATES_MAX], h[STATES_MAX];
    states_load(a->a + c * states, states, lanes, rate);
    states_load(a->h + c * states, states, lanes, h);
    const vf bias = lanes_load(a->dt_bias + c, lanes), d = lanes_load(a->d + c, lanes);
    for (size_t t = 0; t < a->tokens; t++) {
        const float *b = a->b + t * a->bc_stride, *out = a->c + t * a->bc_stride;
        const vf u = lanes_load(a->u + t * a->u_stride + c, lanes);
        const vf delta = vf_softplus(vf_add(lanes_load(a->dt + t * a->dt_stride + c, lanes), bias));
        const vf drive = vf_mul(delta, u);
        vf y = vf_mul(d, u);
        for (size_t n = 0; n < states; n++) {
            h[n] = vf_fma(vf_exp(vf_mul(delta, rate[n])), h[n], vf_mul(drive, vf_set1(b[n])));
            y = vf_fma(h[n], vf_set1(out[n]), y);
        }
        const vf gate = lanes_load(a->gate + t * a->gate_stride + c, lanes);
        lanes_store(a->y + t * a->y_stride + c, lanes, vf_mul(y, vf_silu(gate)));
    }
    states_store(a->h + c * states, states, lanes, h);
}

static void scan(const hk_scan *a) {
    if (a->states > STATES_MAX) {
        hk_scalar()->scan(a);
        return;
    }
    for (size_t c = 0; c < a->channels; c += VF_LANES) {
        const size_t lanes = a->channels - c < VF_LANES ? a->channels - c : VF_LANES;
        if (a->states == 16)
            scan_lanes(a, c, lanes, 16);
        else
            scan_lanes(a, c, lanes, a->states);
    }
}
