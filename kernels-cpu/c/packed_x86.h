/* Products with matrices of eight interleaved rows: a lane is a row, so that nothing is summed across lanes and eight
 * scales come with one load. An activation's four columns are broadcast to all rows. Each pair of row and token is
 * summed block after block in the same order whatever the tile. */

#define PACKED_LANES 8
#define PACKED_TOKENS 4   /* of a tile: its sums, and the eight vectors of a block, stay in registers */
#define PREFETCH 3072     /* bytes ahead of a matrix that is read once */

/* the four activations of columns 4c .. 4c+3, for every row */
HK_INLINE __m256i four_columns(const int8_t *q, size_t c) {
    int32_t four;
    memcpy(&four, q + 4 * c, sizeof four);
    return _mm256_set1_epi32(four);
}

/* One block of eight rows: scales, and the columns' weights as eight vectors. */
typedef struct packed_block {
    vf d;
    __m256i w[8];
} packed_block;

HK_INLINE packed_block packed_load(hk_type type, const uint8_t *block) {
    packed_block p = {.d = vf_load_f16(block)};
    block += 16;
    if (type == HK_Q8_0X8) {
        for (int c = 0; c < 8; c++) p.w[c] = _mm256_loadu_si256((const __m256i *)(block + 32 * c));
        return p;
    }
    const __m256i low = _mm256_set1_epi8(15);
    for (int c = 0; c < 4; c++) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(block + 32 * c));
        p.w[c] = _mm256_and_si256(both, low);
        p.w[c + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
    return p;
}

/* The block against one token: for each row the sum of its 32 products. */
HK_INLINE __m256i packed_dot(hk_type type, const packed_block *p, const int8_t *q, int32_t sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (type == HK_Q4_0X8) {
        /* eight pairs of products stay below 8 * 2 * 15 * 127 < 2^15 */
        __m256i pairs = _mm256_maddubs_epi16(p->w[0], four_columns(q, 0));
        for (size_t c = 1; c < 8; c++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(p->w[c], four_columns(q, c)));
        /* the weights are stored 8 too large */
        return _mm256_sub_epi32(_mm256_madd_epi16(pairs, ones), _mm256_set1_epi32(8 * sum));
    }
    __m256i total = _mm256_setzero_si256();
    for (size_t c = 0; c < 8; c++) {
        const __m256i a = _mm256_sign_epi8(four_columns(q, c), p->w[c]);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(p->w[c]), a), ones));
    }
    return total;
}

HK_INLINE void packed_tile(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t t0,
                           size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type == HK_Q8_0X8 ? 272 : 144;
    vf sum[PACKED_TOKENS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = 0; b < blocks; b++, w += size) {
        if (tokens == 1)
            for (size_t i = 0; i < size; i += 64) _mm_prefetch((const char *)w + PREFETCH + i, _MM_HINT_T0);
        const packed_block p = packed_load(type, w);
        for (size_t t = 0; t < tokens; t++) {
            const size_t at = (t0 + t) * blocks + b;
            const __m256i dot = packed_dot(type, &p, x->q + at * HK_BLOCK, x->sum[at]);
            sum[t] = vf_fma(_mm256_cvtepi32_ps(dot), vf_mul(p.d, vf_set1(x->d[at])), sum[t]);
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        float *out = y + (t0 + t) * y_stride;
        if (accumulate) sum[t] = vf_add(rows < PACKED_LANES ? vf_load_n(out, rows) : vf_load(out), sum[t]);
        if (rows < PACKED_LANES)
            vf_store_n(out, rows, sum[t]);
        else
            vf_store(out, sum[t]);
    }
}

HK_INLINE void packed_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                             float *y, size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * (type == HK_Q8_0X8 ? 272 : 144);
    for (size_t r = 0; r < rows; r += PACKED_LANES, w += group) {
        const size_t lanes = rows - r < PACKED_LANES ? rows - r : PACKED_LANES;
        size_t t = 0;
        for (; t + PACKED_TOKENS <= tokens; t += PACKED_TOKENS)
            packed_tile(type, w, lanes, cols, x, t, PACKED_TOKENS, y + r, y_stride, accumulate);
        for (; t < tokens; t++) packed_tile(type, w, lanes, cols, x, t, 1, y + r, y_stride, accumulate);
    }
}
