/* Matrix products (GEMM) with packed matrices: a group of rows by some tokens is a tile.
 *
 * Requires: packed_arm-inl.h. */
#ifndef HYMBA_GEMM_ARM_INL_H
#define HYMBA_GEMM_ARM_INL_H

/* `lanes` rows of a group by tokens t0 .. t0 + tokens. With one token the matrix is one stream, which hardware
 * prefetchers follow best on their own; with more, the first tile has time to prefetch the next group. */
HK_INLINE void gemm_tile(hk_type type, const uint8_t *w, size_t lanes, size_t cols, const hk_act *x, size_t t0,
                         size_t tokens, int prefetch, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    const uint8_t *next = w + blocks * size;
    block_acts acts = acts_by_token(x, cols, t0);
    vf sum[TILE_SUMS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = 0; b < blocks; b++, w += size, acts.q += HK_BLOCK, acts.d++, acts.offset++, next += size) {
        if (prefetch) prefetch_l2(next, size);
        block_add(type, w, acts, tokens, sum);
    }
    UNROLL
    for (size_t t = 0; t < tokens; t++) put_sums(y + (t0 + t) * y_stride, lanes, sum[t], accumulate);
}

HK_INLINE void packed_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                             float *y, size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type);
    for (size_t r = 0; r < rows; r += HK_LANES, w += group, y += HK_LANES) {
        const size_t lanes = rows - r < HK_LANES ? rows - r : HK_LANES;
#define GEMM_TILE(n) gemm_tile(type, w, lanes, cols, x, t, n, tokens > 1 && t == 0, y, y_stride, accumulate)
        size_t t = 0; /* the tokens of a tile are constant */
        for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS) GEMM_TILE(TILE_TOKENS);
        for (; t + 2 <= tokens; t += 2) GEMM_TILE(2);
        if (t < tokens) GEMM_TILE(1);
#undef GEMM_TILE
    }
}

#endif
