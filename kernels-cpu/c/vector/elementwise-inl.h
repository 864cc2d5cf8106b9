/* Norms, rotary positions and the feed-forward activations.
 *
 * Requires: wide-inl.h, math-inl.h. */
#ifndef HYMBA_ELEMENTWISE_INL_H
#define HYMBA_ELEMENTWISE_INL_H

static float inverse_rms(const float *x, float eps, size_t n) {
    vf s[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    size_t i = 0;
    for (; i + 4 * VF_LANES <= n; i += 4 * VF_LANES)
        for (int j = 0; j < 4; j++) {
            const vf v = vf_load(x + i + (size_t)j * VF_LANES);
            s[j] = vf_fma(v, v, s[j]);
        }
    for (; i < n; i += VF_LANES) {
        const vf v = n - i < VF_LANES ? vf_load_n(x + i, n - i) : vf_load(x + i);
        s[0] = vf_fma(v, v, s[0]);
    }
    return 1.0f / sqrtf(vf_reduce_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3]))) / (float)n + eps);
}

static void rms_norm(const float *x, const float *gain, float eps, size_t n, float *y) {
    const vf s = vf_set1(inverse_rms(x, eps, n));
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), s), vf_load(gain + i)));
    if (i < n) vf_store_n(y + i, n - i, vf_mul(vf_mul(vf_load_n(x + i, n - i), s), vf_load_n(gain + i, n - i)));
}

static void fuse(const float *a, const float *gain_a, const float *b, const float *gain_b, float eps, size_t n,
                 float *y) {
    const vf sa = vf_set1(0.5f * inverse_rms(a, eps, n)), sb = vf_set1(0.5f * inverse_rms(b, eps, n));
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) {
        const vf va = vf_mul(vf_mul(vf_load(a + i), sa), vf_load(gain_a + i));
        vf_store(y + i, vf_fma(vf_mul(vf_load(b + i), sb), vf_load(gain_b + i), va));
    }
    if (i < n) {
        const size_t k = n - i;
        const vf va = vf_mul(vf_mul(vf_load_n(a + i, k), sa), vf_load_n(gain_a + i, k));
        vf_store_n(y + i, k, vf_fma(vf_mul(vf_load_n(b + i, k), sb), vf_load_n(gain_b + i, k), va));
    }
}

static void rope(float *x, size_t heads, size_t dim, const float *cos, const float *sin) {
    const size_t half = dim / 2;
    for (size_t h = 0; h < heads; h++, x += dim) {
        size_t j = 0;
        for (; j + VF_LANES <= half; j += VF_LANES) {
            const vf lo = vf_load(x + j), hi = vf_load(x + half + j), c = vf_load(cos + j), s = vf_load(sin + j);
            vf_store(x + j, vf_fnma(hi, s, vf_mul(lo, c)));
            vf_store(x + half + j, vf_fma(lo, s, vf_mul(hi, c)));
        }
        for (; j < half; j++) {
            const float lo = x[j], hi = x[j + half];
            x[j] = lo * cos[j] - hi * sin[j];
            x[j + half] = hi * cos[j] + lo * sin[j];
        }
    }
}

static void to_f16(const float *x, size_t n, uint16_t *y) {
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) vf_store_f16(y + i, vf_load(x + i));
    if (i < n) {
        uint16_t last[VF_LANES];
        vf_store_f16(last, vf_load_n(x + i, n - i));
        memcpy(y + i, last, (n - i) * sizeof *y);
    }
}

static void silu_mul(const float *gate, const float *up, size_t n, float *y) {
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) vf_store(y + i, vf_mul(vf_silu(vf_load(gate + i)), vf_load(up + i)));
    if (i < n) vf_store_n(y + i, n - i, vf_mul(vf_silu(vf_load_n(gate + i, n - i)), vf_load_n(up + i, n - i)));
}

static void relu2(float *x, size_t n) {
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) {
        const vf v = vf_max(vf_zero(), vf_load(x + i));
        vf_store(x + i, vf_mul(v, v));
    }
    if (i < n) {
        const vf v = vf_max(vf_zero(), vf_load_n(x + i, n - i));
        vf_store_n(x + i, n - i, vf_mul(v, v));
    }
}

#endif
