/* Products of few tokens (matrix-vector products, GEMV, and small batches) are bandwidth-bound: the matrix is read
 * once, as HK_STREAMS concurrent streams with software prefetch. If the integer sums of all tokens do not fit the
 * registers, a block is reloaded from L1.
 *
 * Requires: packed_x86-inl.h, and with HK_DPBUSD_WIDE packed_x86_512-inl.h; float_matmul-inl.h. */
#ifndef HYMBA_GEMV_X86_INL_H
#define HYMBA_GEMV_X86_INL_H

/* Prefetches the cache lines of a block in each stream, `distance` bytes ahead. */
HK_INLINE void prefetch_blocks(const uint8_t *const w[], size_t streams, size_t distance, size_t size) {
    OPT_BARRIER_SIZE(distance); /* prevents a second address register per stream */
    for (size_t g = 0; g < streams; g++)
        for (size_t i = 0; i < size; i += 64) prefetch_l1(w[g] + distance + i);
}

/* Returns the block after the one at p, which has `size` bytes. */
HK_INLINE const uint8_t *next_block(const uint8_t *p, size_t size) {
    p += size;
    OPT_BARRIER_SIZE(p); /* one register per stream, instead of computing all from one */
    return p;
}

/* A group of rows in each of some streams by all tokens: both counts are constant in each call. */
HK_INLINE void gemv_tile(hk_type type, const uint8_t *const w[], size_t streams, size_t cols, size_t prefetch_distance,
                         const hk_act *x, size_t tokens, float *const y[], size_t y_stride, int accumulate) {
    const size_t size = type_bytes(type);
    const size_t most =
        tokens > TILE_TOKENS ? (tokens + 1) / 2 : tokens; /* as many as have their integer sums in registers */
    block_acts acts = acts_interleaved(x, tokens);
    const uint8_t *at[HK_STREAMS];
    vf sum[HK_STREAMS][TILE_SUMS];
    for (size_t g = 0; g < streams; g++) {
        at[g] = w[g];
        for (size_t t = 0; t < tokens; t++) sum[g][t] = vf_zero();
    }
    for (size_t b = cols / HK_BLOCK; b > 0; b--) {
        prefetch_blocks(at, streams, prefetch_distance, size);
        block_dot(type, at, streams, acts, most, sum, 0);
        if (most < tokens) {
            for (size_t g = 0; g < streams; g++) OPT_BARRIER_SIZE(at[g]); /* keeps unpacked weights in registers */
            block_dot(type, at, streams, acts_from(acts, most), tokens - most, sum, most);
        }
        for (size_t g = 0; g < streams; g++) at[g] = next_block(at[g], size);
        acts.q += HK_BLOCK * tokens, acts.d += tokens, acts.offset += tokens;
    }
    for (size_t g = 0; g < streams; g++)
        for (size_t t = 0; t < tokens; t++) put_sums(y[g] + t * y_stride, HK_LANES, sum[g][t], accumulate);
}

#ifdef HK_DPBUSD_WIDE

/* The same with two streams in a register of 512 bits. */
HK_INLINE void gemv_tile_512(hk_type type, const uint8_t *const w[HK_STREAMS], size_t cols, size_t prefetch_distance,
                             const hk_act *x, size_t tokens, float *const y[HK_STREAMS], size_t y_stride,
                             int accumulate) {
    enum { PAIRS = HK_STREAMS / 2 };
    const size_t size = type_bytes(type), most = tokens > 6 ? (tokens + 1) / 2 : tokens;
    block_acts acts = acts_interleaved(x, tokens);
    const uint8_t *at[HK_STREAMS];
    vw sum[PAIRS][WIDE_SUMS];
    for (size_t g = 0; g < HK_STREAMS; g++) at[g] = w[g];
    for (size_t p = 0; p < PAIRS; p++)
        for (size_t t = 0; t < tokens; t++) sum[p][t] = vw_zero();
    for (size_t b = cols / HK_BLOCK; b > 0; b--) {
        prefetch_blocks(at, HK_STREAMS, prefetch_distance, size);
        wide_block_dot(type, at, PAIRS, acts, most, sum, 0);
        if (most < tokens) {
            for (size_t g = 0; g < HK_STREAMS; g++) OPT_BARRIER_SIZE(at[g]);
            wide_block_dot(type, at, PAIRS, acts_from(acts, most), tokens - most, sum, most);
        }
        for (size_t g = 0; g < HK_STREAMS; g++) at[g] = next_block(at[g], size);
        acts.q += HK_BLOCK * tokens, acts.d += tokens, acts.offset += tokens;
    }
    for (size_t p = 0; p < PAIRS; p++)
        for (size_t t = 0; t < tokens; t++) {
            put_sums(y[2 * p] + t * y_stride, HK_LANES, vw_low(sum[p][t]), accumulate);
            put_sums(y[2 * p + 1] + t * y_stride, HK_LANES, vw_high(sum[p][t]), accumulate);
        }
}

#endif

/* A group of rows in each stream by all tokens. */
HK_INLINE void gemv_rows(hk_type type, const uint8_t *const w[HK_STREAMS], size_t cols, size_t prefetch_distance,
                         const hk_act *x, size_t tokens, float *const y[HK_STREAMS], size_t y_stride, int accumulate) {
#ifdef HK_DPBUSD_WIDE
    if (tokens > 1) {
        gemv_tile_512(type, w, cols, prefetch_distance, x, tokens, y, y_stride, accumulate);
        return;
    }
#endif
    const size_t streams = tokens <= 2 ? 4 : 2; /* limited by the registers for integer sums */
#pragma GCC unroll 1
    for (size_t g = 0; g < HK_STREAMS; g += streams)
        gemv_tile(type, w + g, streams, cols, prefetch_distance, x, tokens, y + g, y_stride, accumulate);
}

HK_INLINE void packed_gemv(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols,
                           size_t prefetch_distance, const hk_act *x, size_t tokens, float *const y[HK_STREAMS],
                           size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type);
    for (size_t row = 0; row < rows; row += HK_LANES) {
        const uint8_t *at[HK_STREAMS];
        float *out[HK_STREAMS];
        for (size_t i = 0; i < HK_STREAMS; i++)
            at[i] = (const uint8_t *)w[i] + row / HK_LANES * group, out[i] = y[i] + row;
        gemv_rows(type, at, cols, prefetch_distance, x, tokens, out, y_stride, accumulate);
    }
}

/* One function per type and number of tokens: better register allocation, and faster to compile. */
#define GEMV(name, n)                                                                                         \
    static __attribute__((noinline)) void gemv_##name##_##n(                                                  \
        const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t prefetch_distance, const hk_act *x, \
        float *const y[HK_STREAMS], size_t y_stride, int accumulate) {                                        \
        packed_gemv(HK_##name##X8, w, rows, cols, prefetch_distance, x, n, y, y_stride, accumulate);          \
    }
#define GEMV_TYPE(_, name, ...) \
    GEMV(name, 1) GEMV(name, 2) GEMV(name, 3) GEMV(name, 4) GEMV(name, 5) GEMV(name, 6) GEMV(name, 7) GEMV(name, 8)
HK_QUANTIZED_TYPES(GEMV_TYPE, _)

static void gemv(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t prefetch_distance,
                 const hk_act *x, size_t tokens, float *const y[HK_STREAMS], size_t y_stride, int accumulate) {
#define FEW(name, n) \
    case n: gemv_##name##_##n(w, rows, cols, prefetch_distance, x, y, y_stride, accumulate); break;
#define PACKED(_, name, ...)                                                                                        \
    case HK_##name##X8:                                                                                             \
        switch (tokens) {                                                                                           \
            FEW(name, 1) FEW(name, 2) FEW(name, 3) FEW(name, 4) FEW(name, 5) FEW(name, 6) FEW(name, 7) FEW(name, 8) \
        }                                                                                                           \
        break;
#define AS(product, type) \
    case type: product(type, w, rows, cols, prefetch_distance, x, tokens, y, y_stride, accumulate); break;
    switch (type) {
        AS(float_gemv, HK_F32)
        AS(float_gemv, HK_F16)
        AS(float_gemv, HK_BF16)
        HK_QUANTIZED_TYPES(PACKED, _)
    default: break; /* blocks in ggml's order are compute-bound */
    }
#undef AS
#undef PACKED
#undef FEW
}

#endif
