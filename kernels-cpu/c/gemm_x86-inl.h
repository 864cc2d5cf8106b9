/* Matrix products (GEMM) with packed matrices: a tile is two groups of rows by some tokens. The integer sums of a block
 * stay in registers.
 *
 * Requires: packed_x86-inl.h, and with HK_DPBUSD_WIDE packed_x86_512-inl.h; TILE_TOKENS. */
#ifndef HYMBA_GEMM_X86_INL_H
#define HYMBA_GEMM_X86_INL_H

#define TILE_GROUPS 2            /* share each broadcast activation */
#define ACT_L2_BYTES (128 << 10) /* bytes of activations that stay in L2 */
#define TOKEN_BATCH 60           /* tokens: whole tiles of each kind */
#ifdef HK_DPBUSD_WIDE
#define TILE_TOKENS_512 WIDE_SUMS
_Static_assert(TOKEN_BATCH % TILE_TOKENS_512 == 0, "a batch is of whole tiles");
#endif
_Static_assert(TOKEN_BATCH % TILE_TOKENS == 0, "a batch is of whole tiles");

/* `groups` adjacent groups of rows, with `lanes` rows in the last one, by tokens t0 .. t0 + tokens. The first tile
 * prefetches the next groups. */
HK_INLINE void gemm_tile(hk_type type, const uint8_t *w, size_t groups, size_t lanes, size_t cols, const hk_act *x,
                         size_t t0, size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    const uint8_t *at[TILE_GROUPS] = {w, w + (groups - 1) * blocks * size}, *next = w + groups * blocks * size;
    block_acts acts = acts_by_token(x, cols, t0);
    vf sum[TILE_GROUPS][TILE_SUMS];
    for (size_t t = 0; t < tokens; t++) {
        prefetch_write(y + (t0 + t) * y_stride); /* a line holds both groups' sums */
        for (size_t g = 0; g < groups; g++) sum[g][t] = vf_zero();
    }
    for (size_t b = 0; b < blocks; b++, acts.q += HK_BLOCK, acts.d++, acts.offset++, next += groups * size) {
        if (t0 == 0) prefetch_l2(next, groups * size);
        block_dot(type, at, groups, acts, tokens, sum, 0);
        for (size_t g = 0; g < groups; g++) at[g] += size;
    }
    for (size_t g = 0; g < groups; g++)
        for (size_t t = 0; t < tokens; t++)
            put_sums(y + (t0 + t) * y_stride + g * HK_LANES, g + 1 == groups ? lanes : HK_LANES, sum[g][t], accumulate);
}

#ifdef HK_DPBUSD_WIDE

/* The same for two groups and TILE_TOKENS_512 tokens. */
HK_INLINE void gemm_tile_512(hk_type type, const uint8_t *w, size_t lanes, size_t cols, const hk_act *x, size_t t0,
                             float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    const uint8_t *at[2] = {w, w + blocks * size}, *next = w + 2 * blocks * size;
    block_acts acts = acts_by_token(x, cols, t0);
    vw sum[1][WIDE_SUMS];
    for (size_t t = 0; t < TILE_TOKENS_512; t++) {
        prefetch_write(y + (t0 + t) * y_stride);
        sum[0][t] = vw_zero();
    }
    for (size_t b = 0; b < blocks; b++, acts.q += HK_BLOCK, acts.d++, acts.offset++, next += 2 * size) {
        if (t0 == 0) prefetch_l2(next, 2 * size);
        wide_block_dot(type, at, 1, acts, TILE_TOKENS_512, sum, 0);
        at[0] += size, at[1] += size;
    }
    for (size_t t = 0; t < TILE_TOKENS_512; t++) {
        float *out = y + (t0 + t) * y_stride;
        const __mmask16 there = (__mmask16)((1u << (HK_LANES + lanes)) - 1);
        if (accumulate) sum[0][t] = vw_add(_mm512_maskz_loadu_ps(there, out), sum[0][t]);
        _mm512_mask_storeu_ps(out, there, sum[0][t]);
    }
}

#endif

/* tokens from .. to; `groups` is constant in each call, and so are the tokens of a tile */
HK_INLINE void gemm_groups(hk_type type, const uint8_t *w, size_t groups, size_t lanes, size_t cols, const hk_act *x,
                           size_t from, size_t to, float *y, size_t y_stride, int accumulate) {
#define GEMM_TILE(n) gemm_tile(type, w, groups, lanes, cols, x, t, n, y, y_stride, accumulate)
    size_t t = from;
#ifdef HK_DPBUSD_WIDE
    if (groups == TILE_GROUPS)
        for (; t + TILE_TOKENS_512 <= to; t += TILE_TOKENS_512)
            gemm_tile_512(type, w, lanes, cols, x, t, y, y_stride, accumulate);
#endif
    for (; t + TILE_TOKENS <= to; t += TILE_TOKENS) GEMM_TILE(TILE_TOKENS);
    switch (to - t) {
    case 5: GEMM_TILE(5 < TILE_TOKENS ? 5 : 1); break; /* where five are a whole tile, none are left here */
    case 4: GEMM_TILE(4); break;
    case 3: GEMM_TILE(3); break;
    case 2: GEMM_TILE(2); break;
    case 1: GEMM_TILE(1); break;
    }
#undef GEMM_TILE
}

/* Tokens whose activations stay in L2 during a call, in whole tiles. */
HK_INLINE size_t token_batch(size_t cols) {
    const size_t tokens = ACT_L2_BYTES / cols / TOKEN_BATCH * TOKEN_BATCH;
    return tokens > TOKEN_BATCH ? tokens : TOKEN_BATCH;
}

HK_INLINE void packed_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                             float *y, size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type), batch = token_batch(cols);
    for (size_t from = 0, to; from < tokens; from = to) {
        to = tokens - from > batch ? from + batch : tokens;
        for (size_t row = 0, step; row < rows; row += step) {
            const size_t left = rows - row, groups = left > HK_LANES && tokens > 1 ? TILE_GROUPS : 1;
            step = left < groups * HK_LANES ? left : groups * HK_LANES;
            const size_t lanes = step - (groups - 1) * HK_LANES;
            const uint8_t *here = w + row / HK_LANES * group;
            if (groups == 1)
                gemm_groups(type, here, 1, lanes, cols, x, from, to, y + row, y_stride, accumulate);
            else
                gemm_groups(type, here, TILE_GROUPS, lanes, cols, x, from, to, y + row, y_stride, accumulate);
        }
    }
}

#endif
