/* Products with matrices of eight interleaved rows: a lane is a row, so that nothing is summed across lanes and eight
 * scales come with one load. An activation's four columns are broadcast to all rows. Each pair of row and token is
 * summed block after block in the same order whatever the tile. */

#define PACKED_LANES 8
#define PACKED_GROUPS 2 /* of a tile of several tokens: they share each broadcast activation */
#ifndef PACKED_TOKENS
#define PACKED_TOKENS 5 /* of a tile: the integer sums of a block stay in registers */
#endif

HK_INLINE size_t packed_size(hk_type type) {
    return type == HK_Q8_0X8 ? 272 : 144;
}

/* the four activations of columns 4c .. 4c+3, for every row */
HK_INLINE __m256i four_columns(const int8_t *q, size_t c) {
    int32_t four;
    memcpy(&four, q + 4 * c, sizeof four);
    return _mm256_set1_epi32(four);
}

/* The weights of columns 4c .. 4c+3: Q4_0's 8 too large, Q8_0's 128 too large where HK_DPBUSD wants them unsigned. */
HK_INLINE __m256i packed_weights(hk_type type, const uint8_t *block, size_t c) {
    const uint8_t *chunks = block + 2 * PACKED_LANES;
    if (type == HK_Q8_0X8) {
        const __m256i w = _mm256_loadu_si256((const __m256i *)(chunks + 32 * c));
#ifdef HK_DPBUSD
        return _mm256_xor_si256(w, _mm256_set1_epi8(-128));
#else
        return w;
#endif
    }
    const __m256i both = _mm256_loadu_si256((const __m256i *)(chunks + 32 * (c % 4)));
    return _mm256_and_si256(c < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
}

/* The sum of a block's products, for each row: begin, eight steps, end. `offset` is what -8 adds to every weight. */
#ifdef HK_DPBUSD

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) {
    const __m256i v = _mm256_set1_epi32(offset);
    return type == HK_Q8_0X8 ? _mm256_slli_epi32(v, 4) : v;
}

HK_INLINE __m256i packed_step(hk_type type, __m256i sum, __m256i w, __m256i a) {
    (void)type;
    return HK_DPBUSD(sum, w, a);
}

HK_INLINE __m256i packed_end(hk_type type, __m256i sum, int32_t offset) {
    (void)type, (void)offset;
    return sum;
}

#else

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) {
    (void)type, (void)offset;
    return _mm256_setzero_si256();
}

HK_INLINE __m256i packed_step(hk_type type, __m256i sum, __m256i w, __m256i a) {
    /* eight pairs of products stay below 8 * 2 * 15 * 127 < 2^15 */
    if (type == HK_Q4_0X8) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

HK_INLINE __m256i packed_end(hk_type type, __m256i sum, int32_t offset) {
    if (type == HK_Q8_0X8) return sum;
    return _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(offset));
}

#endif

/* `lanes` rows of the last group, all of those before it. One token reads the matrix as one stream, which the CPU's own
 * prefetchers follow best when left alone; with more, the first tile has time to ask for the groups after it. */
HK_INLINE void packed_tile(hk_type type, const uint8_t *w, size_t groups, size_t lanes, size_t cols, const hk_act *x,
                           size_t t0, size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = packed_size(type), group = blocks * size;
    const char *ahead = (const char *)w + groups * group;
    const int8_t *q = x->q + t0 * cols;
    const float *d = x->d + t0 * blocks;
    const int32_t *offset = x->offset + t0 * blocks;
    vf sum[PACKED_GROUPS][PACKED_TOKENS];
    for (size_t g = 0; g < groups; g++)
        for (size_t t = 0; t < tokens; t++) sum[g][t] = vf_zero();
    for (size_t b = 0; b < blocks; b++, w += size, q += HK_BLOCK) {
        if (tokens > 1 && t0 == 0)
            for (size_t i = 0; i < groups * size; i += 64, ahead += 64) prefetch_soon(ahead);
        __m256i dot[PACKED_GROUPS][PACKED_TOKENS];
        for (size_t t = 0; t < tokens; t++)
            for (size_t g = 0; g < groups; g++) dot[g][t] = packed_begin(type, offset[t * blocks + b]);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            const size_t c = i / 2 + i % 2 * 4; /* the two columns of a nibble's byte one after the other */
            __m256i v[PACKED_GROUPS];
            for (size_t g = 0; g < groups; g++) v[g] = packed_weights(type, w + g * group, c);
            for (size_t t = 0; t < tokens; t++) {
                const __m256i a = four_columns(q + t * cols, c);
                for (size_t g = 0; g < groups; g++) {
                    dot[g][t] = packed_step(type, dot[g][t], v[g], a);
                    OPAQUE(dot[g][t]); /* or the compiler adds in another order, with more sums than registers */
                }
            }
        }
        for (size_t g = 0; g < groups; g++) {
            const vf scale = vf_load_f16(w + g * group);
            for (size_t t = 0; t < tokens; t++) {
                const vf whole = _mm256_cvtepi32_ps(packed_end(type, dot[g][t], offset[t * blocks + b]));
                sum[g][t] = vf_fma(whole, vf_mul(scale, vf_set1(d[t * blocks + b])), sum[g][t]);
            }
        }
    }
    for (size_t g = 0; g < groups; g++)
        for (size_t t = 0; t < tokens; t++) {
            float *out = y + (t0 + t) * y_stride + g * PACKED_LANES;
            if (g + 1 == groups && lanes < PACKED_LANES) {
                if (accumulate) sum[g][t] = vf_add(vf_load_n(out, lanes), sum[g][t]);
                vf_store_n(out, lanes, sum[g][t]);
            } else {
                if (accumulate) sum[g][t] = vf_add(vf_load(out), sum[g][t]);
                vf_store(out, sum[g][t]);
            }
        }
}

/* all tokens; `groups` is constant in each call, and so are the tokens of a tile */
HK_INLINE void packed_groups(hk_type type, const uint8_t *w, size_t groups, size_t lanes, size_t cols, const hk_act *x,
                             size_t tokens, float *y, size_t y_stride, int accumulate) {
#define PACKED_TILE(n) packed_tile(type, w, groups, lanes, cols, x, t, n, y, y_stride, accumulate)
    size_t t = 0;
    for (; t + PACKED_TOKENS <= tokens; t += PACKED_TOKENS) PACKED_TILE(PACKED_TOKENS);
    switch (tokens - t) {
    case 5: PACKED_TILE(5 < PACKED_TOKENS ? 5 : 1); break; /* where five are a whole tile, none are left here */
    case 4: PACKED_TILE(4); break;
    case 3: PACKED_TILE(3); break;
    case 2: PACKED_TILE(2); break;
    case 1: PACKED_TILE(1); break;
    }
#undef PACKED_TILE
}

HK_INLINE void packed_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                             float *y, size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * packed_size(type);
    while (rows > 0) {
        const size_t groups = rows > PACKED_LANES && tokens > 1 ? PACKED_GROUPS : 1, height = groups * PACKED_LANES;
        const size_t step = rows < height ? rows : height, lanes = step - (groups - 1) * PACKED_LANES;
        if (tokens == 1)
            packed_tile(type, w, 1, lanes, cols, x, 0, 1, y, y_stride, accumulate);
        else if (groups == 1)
            packed_groups(type, w, 1, lanes, cols, x, tokens, y, y_stride, accumulate);
        else
            packed_groups(type, w, PACKED_GROUPS, lanes, cols, x, tokens, y, y_stride, accumulate);
        rows -= step;
        w += groups * group;
        y += step;
    }
}
