/* Products with F32, F16 and BF16 matrices: tiles of rows by tokens, one vector of partial sums for each pair. Each
 * pair is summed along the columns in the same order, regardless of the tile.
 *
 * Requires: simd_avx2.h or simd_neon.h, math-inl.h. */
#ifndef HYMBA_FLOAT_MATMUL_INL_H
#define HYMBA_FLOAT_MATMUL_INL_H

HK_INLINE vf weight_load(hk_type type, const uint8_t *row, size_t i) {
    switch (type) {
    case HK_F16: return vf_load_f16(row + 2 * i);
    case HK_BF16: return vf_load_bf16(row + 2 * i);
    default: return vf_load((const float *)(const void *)(row + 4 * i));
    }
}

/* the last n < 8 columns of a row */
HK_INLINE vf weight_load_n(hk_type type, const uint8_t *row, size_t n) {
    uint8_t last[4 * VF_LANES] = {0};
    memcpy(last, row, n * (type == HK_F32 ? 4 : 2));
    return weight_load(type, last, 0);
}

#define FLOAT_SUMS 16 /* maximum per tile: rows times tokens */

/* The same number of consecutive rows in each of some places; with several places, prefetches
 * `distance` bytes ahead. */
HK_INLINE void float_tile(hk_type type, const void *const w[], size_t places, size_t rows, size_t cols, size_t distance,
                          const hk_act *x, size_t t0, size_t tokens, float *const y[], size_t y_stride,
                          int accumulate) {
    const size_t size = type == HK_F32 ? 4 : 2, row_bytes = cols * size, rest = cols % VF_LANES, each = rows / places;
    vf sum[FLOAT_SUMS], v[FLOAT_SUMS];
    const uint8_t *row[FLOAT_SUMS];
    for (size_t r = 0; r < rows; r++) row[r] = (const uint8_t *)w[r / each] + r % each * row_bytes;
    for (size_t k = 0; k < FLOAT_SUMS; k++) sum[k] = vf_zero();
    for (size_t i = 0; i + VF_LANES <= cols; i += VF_LANES) {
        if (places > 1) /* row by row, in memory order */
            for (size_t p = 0; p < places; p++) prefetch_l1(row[p * each] + each * i * size + distance);
        for (size_t t = 0; t < tokens; t++) v[t] = vf_load(x->x + (t0 + t) * x->stride + i);
        for (size_t r = 0; r < rows; r++) {
            const vf weight = weight_load(type, row[r], i);
            for (size_t t = 0; t < tokens; t++) sum[t * rows + r] = vf_fma(weight, v[t], sum[t * rows + r]);
        }
    }
    if (rest > 0) { /* a last vector that ends with the row; repeated columns are multiplied by zeros */
        const size_t i = cols < VF_LANES ? 0 : cols - VF_LANES;
        for (size_t t = 0; t < tokens; t++) {
            const float *values = x->x + (t0 + t) * x->stride + i;
            v[t] = cols < VF_LANES ? vf_load_n(values, cols) : vf_last(vf_load(values), rest);
        }
        for (size_t r = 0; r < rows; r++) {
            const vf weight = cols < VF_LANES ? weight_load_n(type, row[r], cols) : weight_load(type, row[r], i);
            for (size_t t = 0; t < tokens; t++) sum[t * rows + r] = vf_fma(weight, v[t], sum[t * rows + r]);
        }
    }
    float sums[FLOAT_SUMS];
    for (size_t k = 0; k < rows * tokens; k += VF_LANES) vf_store(sums + k, vf_sums(sum + k));
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = 0; r < rows; r++) {
            float *out = y[r / each] + (t0 + t) * y_stride + r % each;
            *out = accumulate ? *out + sums[t * rows + r] : sums[t * rows + r];
        }
}

HK_INLINE void float_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                            float *y, size_t y_stride, int accumulate) {
    const size_t row_bytes = cols * (type == HK_F32 ? 4 : 2);
#define FLOAT_TILE(rows, tokens) float_tile(type, &at, 1, rows, cols, 0, x, t, tokens, &y, y_stride, accumulate)
    for (size_t step; rows > 0; rows -= step, w += step * row_bytes, y += step) {
        const void *at = w;
        size_t t = 0;
        step = tokens == 1 && rows >= 8 ? 8 : rows >= 4 ? 4 : 1;
        if (step == 8) FLOAT_TILE(8, 1);
        if (step == 4) { /* constants, so that the sums stay in registers */
            for (; t + 3 <= tokens; t += 3) FLOAT_TILE(4, 3);
            for (; t < tokens; t++) FLOAT_TILE(4, 1);
        }
        if (step == 1)
            for (; t < tokens; t++) FLOAT_TILE(1, 1);
    }
#undef FLOAT_TILE
}

/* Ranges of rows in HK_STREAMS places. With several tokens, the first loads the rows into the cache for the others. */
HK_INLINE void float_gemv(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols,
                          size_t prefetch_distance, const hk_act *x, size_t tokens, float *const y[HK_STREAMS],
                          size_t y_stride, int accumulate) {
    enum { EACH = VF_LANES / HK_STREAMS }; /* rows of a tile in each place */
    for (size_t r = 0; r < rows; r += EACH) {
        const void *at[HK_STREAMS];
        float *out[HK_STREAMS];
        for (size_t i = 0; i < HK_STREAMS; i++)
            at[i] = (const uint8_t *)w[i] + r * cols * (type == HK_F32 ? 4 : 2), out[i] = y[i] + r;
        for (size_t t = 0; t < tokens; t++)
            float_tile(type, at, HK_STREAMS, VF_LANES, cols, prefetch_distance, x, t, 1, out, y_stride, accumulate);
    }
}

#endif
