/* Products of few tokens (matrix-vector products, GEMV, and small batches): the matrix is read once, one range after
 * the other, which hardware prefetchers follow. For a single token this is `matmul`.
 *
 * Requires: packed_arm-inl.h, gemm_arm-inl.h, vector/float_matmul-inl.h. */
#ifndef HYMBA_GEMV_ARM_INL_H
#define HYMBA_GEMV_ARM_INL_H

/* A group of rows by all tokens, whose number is constant in each call. */
HK_INLINE void gemv_tile(hk_type type, const uint8_t *w, size_t cols, size_t prefetch_distance, const hk_act *x,
                         size_t tokens, float *y, size_t y_stride, int accumulate) {
#ifdef HK_SDOT
    const size_t most = tokens; /* as many as have their integer sums in registers */
#else
    const size_t most = tokens > TILE_TOKENS ? (tokens + 1) / 2 : tokens;
#endif
    const size_t size = type_bytes(type);
    block_acts acts = acts_interleaved(x, tokens);
    vf sum[TILE_SUMS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = cols / HK_BLOCK; b > 0; b--, w += size) {
        for (size_t i = 0; i < size; i += 64) prefetch_l1(w + prefetch_distance + i);
        block_add(type, w, acts, most, sum);
        if (most < tokens) block_add(type, w, acts_from(acts, most), tokens - most, sum + most);
        acts.q += HK_BLOCK * tokens, acts.d += tokens, acts.offset += tokens;
    }
    UNROLL
    for (size_t t = 0; t < tokens; t++) put_sums(y + t * y_stride, HK_LANES, sum[t], accumulate);
}

HK_INLINE void packed_gemv(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols,
                           size_t prefetch_distance, const hk_act *x, size_t tokens, float *const y[HK_STREAMS],
                           size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type);
    for (size_t s = 0; s < HK_STREAMS; s++)
        for (size_t r = 0; r < rows; r += HK_LANES)
            gemv_tile(type, (const uint8_t *)w[s] + r / HK_LANES * group, cols, prefetch_distance, x, tokens, y[s] + r,
                      y_stride, accumulate);
}

/* One function per type and number of tokens: better register allocation, and faster to compile. */
#define GEMV(name, n)                                                                                         \
    static __attribute__((noinline)) void gemv_##name##_##n(                                                  \
        const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t prefetch_distance, const hk_act *x, \
        float *const y[HK_STREAMS], size_t y_stride, int accumulate) {                                        \
        packed_gemv(HK_##name##X8, w, rows, cols, prefetch_distance, x, n, y, y_stride, accumulate);          \
    }
#define GEMV_TYPE(_, name, ...) \
    GEMV(name, 2) GEMV(name, 3) GEMV(name, 4) GEMV(name, 5) GEMV(name, 6) GEMV(name, 7) GEMV(name, 8)
HK_QUANTIZED_TYPES(GEMV_TYPE, _)

static void gemv(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t prefetch_distance,
                 const hk_act *x, size_t tokens, float *const y[HK_STREAMS], size_t y_stride, int accumulate) {
    if (tokens == 1 || !is_packed(type)) {
        for (size_t s = 0; s < HK_STREAMS; s++) matmul(type, w[s], rows, cols, x, tokens, y[s], y_stride, accumulate);
        return;
    }
#define FEW(name, n) \
    case n: gemv_##name##_##n(w, rows, cols, prefetch_distance, x, y, y_stride, accumulate); break;
#define PACKED(_, name, ...)                                                                                           \
    case HK_##name##X8:                                                                                                \
        switch (tokens) { FEW(name, 2) FEW(name, 3) FEW(name, 4) FEW(name, 5) FEW(name, 6) FEW(name, 7) FEW(name, 8) } \
        break;
    switch (type) {
        HK_QUANTIZED_TYPES(PACKED, _)
    default: break;
    }
#undef PACKED
#undef FEW
}

#endif
