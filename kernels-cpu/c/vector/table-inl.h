/* Shared by all tables of vector kernels: dispatch of products by type, and the initializer.
 *
 * Requires: matmul and gemv of packed matrices, block_tile; the other kernels of vector/. */
#ifndef HYMBA_TABLE_INL_H
#define HYMBA_TABLE_INL_H

/* Matrices in ggml's order. Each pair of row and token is summed in the same order, regardless of the tile. */
HK_INLINE void block_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                            float *y, size_t y_stride, int accumulate) {
    const size_t row_bytes = cols / HK_BLOCK * type_bytes(type);
    for (size_t r = 0; r < rows; r += 8) {
        const size_t height = rows - r < 8 ? rows - r : 8;
        size_t t = 0;
        for (; t + BLOCK_TOKENS <= tokens; t += BLOCK_TOKENS)
            block_tile(type, w + r * row_bytes, height, cols, x, t, BLOCK_TOKENS, y + r, y_stride, accumulate);
        for (; t < tokens; t++) block_tile(type, w + r * row_bytes, height, cols, x, t, 1, y + r, y_stride, accumulate);
    }
}

static void matmul(hk_type type, const void *w, size_t rows, size_t cols, const hk_act *x, size_t tokens, float *y,
                   size_t y_stride, int accumulate) {
#define AS(product, type) \
    case type: product(type, w, rows, cols, x, tokens, y, y_stride, accumulate); break;
#define QUANTIZED(_, name, ...) AS(block_matmul, HK_##name) AS(packed_matmul, HK_##name##X8)
    switch (type) { /* constants, so that each type has specialized code */
        AS(float_matmul, HK_F32)
        AS(float_matmul, HK_F16)
        AS(float_matmul, HK_BF16)
        HK_QUANTIZED_TYPES(QUANTIZED, _)
    }
#undef QUANTIZED
#undef AS
}

/* ---- arithmetic from registers ---- */

static float float_rate(size_t rounds) {
    enum { CHAINS = VW_WHOLE ? 8 : 4 };
    vw sum[CHAINS], a = vw_set1(0.5f);
    const vw w = vw_set1(1.0f);
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++) sum[i] = w;
    for (size_t n = rounds * (HK_ROUND / VW_LANES / CHAINS); n > 0; n--) {
        OPT_BARRIER_WIDE(a);
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) sum[i] = vw_fma(sum[i], a, w);
    }
    vw all = sum[0];
#pragma GCC unroll 8
    for (int i = 1; i < CHAINS; i++) all = vw_add(all, sum[i]);
    return vf_reduce_sum(vf_add(vw_low(all), vw_high(all)));
}

/* The initializer of a table. */
#define HK_TABLE(isa)                         \
    {                                         \
        .name = isa,                          \
        .matmul = matmul,                     \
        .gemv = gemv,                         \
        .quantize = quantize,                 \
        .rms_norm = rms_norm,                 \
        .fuse = fuse,                         \
        .rope = rope,                         \
        .to_f16 = to_f16,                     \
        .attend_prefill = attend_prefill,     \
        .attend_decode = attend_decode,       \
        .combine_partials = combine_partials, \
        .conv_silu = conv_silu,               \
        .scan = scan,                         \
        .silu_mul = silu_mul,                 \
        .relu2 = relu2,                       \
        .read = read_all,                     \
        .int8_rate = int8_rate,               \
        .float_rate = float_rate,             \
    }

#endif
