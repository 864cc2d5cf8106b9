/* Products with F32, F16 and BF16 matrices: tiles of rows by tokens, one vector of partial sums for each pair. Each
 * pair's sum runs along the columns in the same order whatever tile it falls in. */

HK_INLINE vf weight_load(hk_type type, const uint8_t *row, size_t i) {
    switch (type) {
    case HK_F16: return vf_load_f16(row + 2 * i);
    case HK_BF16: return vf_load_bf16(row + 2 * i);
    default: return vf_load((const float *)(const void *)(row + 4 * i));
    }
}

/* the last n < 8 columns */
HK_INLINE vf weight_load_n(hk_type type, const uint8_t *row, size_t i, size_t n) {
    uint8_t last[4 * VF_LANES] = {0};
    const size_t size = type == HK_F32 ? 4 : 2;
    memcpy(last, row + size * i, size * n);
    return weight_load(type, last, 0);
}

HK_INLINE void float_tile(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t t0,
                              size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t row_bytes = cols * (type == HK_F32 ? 4 : 2);
    vf sum[4][3];
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < tokens; t++) sum[r][t] = vf_zero();
    size_t i = 0;
    for (; i + VF_LANES <= cols; i += VF_LANES) {
        vf v[3];
        for (size_t t = 0; t < tokens; t++) v[t] = vf_load(x->x + (t0 + t) * x->stride + i);
        for (size_t r = 0; r < rows; r++) {
            const vf weight = weight_load(type, w + r * row_bytes, i);
            for (size_t t = 0; t < tokens; t++) sum[r][t] = vf_fma(weight, v[t], sum[r][t]);
        }
    }
    if (i < cols)
        for (size_t r = 0; r < rows; r++)
            for (size_t t = 0; t < tokens; t++)
                sum[r][t] = vf_fma(weight_load_n(type, w + r * row_bytes, i, cols - i),
                                   vf_load_n(x->x + (t0 + t) * x->stride + i, cols - i), sum[r][t]);
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < tokens; t++) {
            float *out = y + (t0 + t) * y_stride + r;
            const float v = vf_sum(sum[r][t]);
            *out = accumulate ? *out + v : v;
        }
}

HK_INLINE void float_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x,
                                size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t row_bytes = cols * (type == HK_F32 ? 4 : 2);
    for (size_t r = 0; r < rows;) {
        const size_t height = rows - r >= 4 ? 4 : 1;
        const uint8_t *row = w + r * row_bytes;
        for (size_t t = 0; t < tokens;) {
            const size_t width = tokens - t >= 3 ? 3 : 1;
            /* constants, so that the sums live in registers */
            if (height == 4 && width == 3)
                float_tile(type, row, 4, cols, x, t, 3, y + r, y_stride, accumulate);
            else if (height == 4)
                float_tile(type, row, 4, cols, x, t, 1, y + r, y_stride, accumulate);
            else
                for (size_t k = 0; k < width; k++) float_tile(type, row, 1, cols, x, t + k, 1, y + r, y_stride, accumulate);
            t += width;
        }
        r += height;
    }
}
