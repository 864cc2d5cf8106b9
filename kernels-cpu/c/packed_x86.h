/* Products with matrices of eight interleaved rows: a lane is a row, so that nothing is summed across lanes and eight
 * scales come with one load. An activation's four columns are broadcast to all rows. Each pair of row and token is
 * summed block after block in the same order whatever the tile. */

#define PACKED_GROUPS 2 /* of a tile of several tokens: they share each broadcast activation */
#define PACKED_MOST (HK_STREAMS > PACKED_GROUPS ? HK_STREAMS : PACKED_GROUPS) /* of any tile */
#define PACKED_NEAR (128 << 10) /* bytes of activations that stay in the second-level cache */
#define PACKED_WHOLE 60 /* tokens: whole tiles of each kind */
#ifndef PACKED_TOKENS
#define PACKED_TOKENS 5 /* of a tile: the integer sums of a block stay in registers */
#endif

/* the four activations of columns 4c .. 4c+3, for every row */
HK_INLINE __m256i four_columns(const int8_t *q, size_t c) {
    int32_t four;
    memcpy(&four, q + 4 * c, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Do the kernels hold the type's weights as signed bytes? The others are unsigned: too large by packed_bias. */
HK_INLINE int packed_signed(hk_type type) {
#ifdef HK_DPBUSD
    (void)type;
    return 0; /* it wants them so */
#else
    return type == HK_Q8_0X8 || type == HK_IQ4_NLX8;
#endif
}

HK_INLINE int packed_bias(hk_type type) {
    switch (type) {
    case HK_Q4_0X8: return 8;
    case HK_Q5_0X8: return 16;
    case HK_MXFP4X8: return 12;
    case HK_Q4_1X8:
    case HK_Q5_1X8: return 0;
    default: return packed_signed(type) ? 0 : 128;
    }
}

/* a table of 16 signed levels, as the kernels hold weights */
HK_INLINE __m256i packed_table(hk_type type, const int8_t *levels) {
    return _mm256_add_epi8(table16(levels), _mm256_set1_epi8((char)packed_bias(type)));
}

/* what the low four bits of each byte stand for in a table that is there twice */
HK_INLINE __m256i packed_lookup(__m256i table, __m256i low) {
#ifdef HK_LOOKUP32
    return HK_LOOKUP32(low, table); /* of five bits */
#else
    return _mm256_shuffle_epi8(table, _mm256_and_si256(low, _mm256_set1_epi8(15)));
#endif
}

/* the weights of columns 4c .. 4c+3 */
HK_INLINE __m256i packed_weights(hk_type type, const uint8_t *block, size_t c) {
    const uint8_t *chunks = block + HK_LANES * head_bytes(type);
    if (type == HK_Q8_0X8) {
        const __m256i w = _mm256_loadu_si256((const __m256i *)(chunks + 32 * c));
        return packed_signed(type) ? w : _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    }
    const __m256i both = _mm256_loadu_si256((const __m256i *)(chunks + 32 * (c % 4)));
    const __m256i low = c < 4 ? both : _mm256_srli_epi16(both, 4); /* four bits of each byte */
    if (type == HK_IQ4_NLX8) return packed_lookup(packed_table(type, IQ4_NL_LEVELS), low);
    if (type == HK_MXFP4X8) return packed_lookup(packed_table(type, MXFP4_LEVELS), low);
    const __m256i codes = _mm256_and_si256(low, _mm256_set1_epi8(15));
    if (!has_fifth(type)) return codes;
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(chunks - 4 * HK_LANES));
    const __m256i fifth = c < 4 ? _mm256_slli_epi16(bits, 4 - (int)c % 4) : _mm256_srli_epi16(bits, (int)c % 4);
    return _mm256_or_si256(codes, _mm256_and_si256(fifth, _mm256_set1_epi8(16)));
}

/* The sum of a block's products, for each row: begin, eight steps, end. `offset` is what -8 adds to every weight. */

HK_INLINE __m256i packed_missing(hk_type type, int32_t offset) { /* for every row */
    switch (packed_bias(type)) {
    case 0: return _mm256_setzero_si256();
    case 12: return _mm256_set1_epi32(offset + offset / 2); /* offset is even */
    default: return _mm256_set1_epi32(offset * (packed_bias(type) / 8));
    }
}

#ifdef HK_DPBUSD

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) {
    return packed_missing(type, offset);
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

/* Do eight pairs of products fit 16 bits? Those of 4-bit codes stay below 8 * 2 * 15 * 127 < 2^15. */
HK_INLINE int packed_narrow(hk_type type) {
    return type == HK_Q4_0X8 || type == HK_Q4_1X8;
}

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) {
    return packed_narrow(type) ? _mm256_setzero_si256() : packed_missing(type, offset);
}

HK_INLINE __m256i packed_step(hk_type type, __m256i sum, __m256i w, __m256i a) {
    if (packed_narrow(type)) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
    const __m256i pairs = packed_signed(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
                                              : _mm256_maddubs_epi16(w, a);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

HK_INLINE __m256i packed_end(hk_type type, __m256i sum, int32_t offset) {
    if (!packed_narrow(type)) return sum;
    return _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), packed_missing(type, offset));
}

#endif

/* A group of rows in each of some places, `lanes` rows of the last one. A single token asks for what is `soon` bytes farther if
 * there are several; of more, the first tile has time to ask for the groups after it, which follow the last. */
HK_INLINE void packed_tile(hk_type type, const uint8_t *const w[PACKED_MOST], size_t groups, size_t lanes, size_t cols,
                           size_t soon, const hk_act *x, size_t t0, size_t tokens, float *const y[PACKED_MOST],
                           size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    const uint8_t *ahead = w[groups - 1] + blocks * size;
    const int8_t *q = x->q + t0 * cols;
    const float *d = x->d + t0 * blocks;
    const int32_t *offset = x->offset + t0 * blocks;
    if (tokens > 1) /* what the sums go to, both groups' a line: it comes while they are added up */
        for (size_t t = 0; t < tokens; t++) prefetch_write(y[0] + (t0 + t) * y_stride);
    vf sum[PACKED_MOST][PACKED_TOKENS];
    for (size_t g = 0; g < groups; g++)
        for (size_t t = 0; t < tokens; t++) sum[g][t] = vf_zero();
    for (size_t b = 0, at = 0; b < blocks; b++, at += size, soon += size, q += HK_BLOCK, ahead += groups * size) {
        if (tokens == 1 && groups > 1) {
            OPAQUE_SIZE(soon); /* or each address is computed anew */
            for (size_t g = 0; g < groups; g++)
                for (size_t i = 0; i < size; i += 64) prefetch_near(w[g] + soon + i);
        }
        if (tokens > 1 && t0 == 0) prefetch_lines(ahead, groups * size);
        __m256i dot[PACKED_MOST][PACKED_TOKENS];
        for (size_t t = 0; t < tokens; t++)
            for (size_t g = 0; g < groups; g++) dot[g][t] = packed_begin(type, offset[t * blocks + b]);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            const size_t c = i / 2 + i % 2 * 4; /* the two columns of a nibble's byte one after the other */
            __m256i v[PACKED_MOST];
            for (size_t g = 0; g < groups; g++) v[g] = packed_weights(type, w[g] + at, c);
            for (size_t t = 0; t < tokens; t++) {
                const __m256i a = four_columns(q + t * cols, c);
                for (size_t g = 0; g < groups; g++) {
                    dot[g][t] = packed_step(type, dot[g][t], v[g], a);
                    OPAQUE(dot[g][t]); /* or the compiler adds in another order, with more sums than registers */
                }
            }
        }
        for (size_t g = 0; g < groups; g++) {
            const vf scale = load_scales(type, w[g] + at);
            for (size_t t = 0; t < tokens; t++) {
                const size_t block = t * blocks + b;
                const vf whole = _mm256_cvtepi32_ps(packed_end(type, dot[g][t], offset[block]));
                sum[g][t] = vf_fma(whole, vf_mul(scale, vf_set1(d[block])), sum[g][t]);
                if (has_min(type)) {
                    const vf min = vf_load_f16(w[g] + at + HK_LANES * scale_bytes(type));
                    sum[g][t] = vf_fma(min, vf_set1(act_sum(d[block], offset[block])), sum[g][t]);
                }
            }
        }
    }
    for (size_t g = 0; g < groups; g++)
        for (size_t t = 0; t < tokens; t++) {
            float *out = y[g] + (t0 + t) * y_stride;
            if (g + 1 == groups && lanes < HK_LANES) {
                if (accumulate) sum[g][t] = vf_add(vf_load_n(out, lanes), sum[g][t]);
                vf_store_n(out, lanes, sum[g][t]);
            } else {
                if (accumulate) sum[g][t] = vf_add(vf_load(out), sum[g][t]);
                vf_store(out, sum[g][t]);
            }
        }
}

#ifdef HK_DPBUSD_WIDE

#define PACKED_WIDE 12 /* tokens of a tile whose two groups lie side by side in registers of 512 bits */

HK_INLINE __m512i wide_pair(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

HK_INLINE __m512i wide_load(const uint8_t *a, const uint8_t *b) {
    return wide_pair(_mm256_loadu_si256((const __m256i *)a), _mm256_loadu_si256((const __m256i *)b));
}

HK_INLINE __m512i wide_lookup(hk_type type, const int8_t *levels, __m512i low) {
    const __m512i table = wide_pair(packed_table(type, levels), packed_table(type, levels));
#ifdef HK_LOOKUP64
    return HK_LOOKUP64(low, table); /* of six bits, in a table that is there four times */
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(low, _mm512_set1_epi8(15)));
#endif
}

/* `packed_weights` of two groups */
HK_INLINE __m512i wide_weights(hk_type type, const uint8_t *a, const uint8_t *b, size_t c) {
    const size_t head = HK_LANES * head_bytes(type), at = head + 32 * (type == HK_Q8_0X8 ? c : c % 4);
    const __m512i both = wide_load(a + at, b + at);
    if (type == HK_Q8_0X8) return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    const __m512i low = c < 4 ? both : _mm512_srli_epi16(both, 4);
    if (type == HK_IQ4_NLX8) return wide_lookup(type, IQ4_NL_LEVELS, low);
    if (type == HK_MXFP4X8) return wide_lookup(type, MXFP4_LEVELS, low);
    const __m512i codes = _mm512_and_si512(low, _mm512_set1_epi8(15));
    if (!has_fifth(type)) return codes;
    const __m512i bits = wide_load(a + head - 4 * HK_LANES, b + head - 4 * HK_LANES);
    const __m512i fifth = c < 4 ? _mm512_slli_epi16(bits, 4 - (unsigned)c % 4) : _mm512_srli_epi16(bits, (unsigned)c % 4);
    return _mm512_or_si512(codes, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
}

/* `packed_tile` of two groups and PACKED_WIDE tokens: the same sums */
HK_INLINE void wide_tile(hk_type type, const uint8_t *w, size_t lanes, size_t cols, const hk_act *x, size_t t0, float *y,
                         size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type), group = blocks * size;
    const char *ahead = (const char *)w + 2 * group;
    const int8_t *q = x->q + t0 * cols;
    const float *d = x->d + t0 * blocks;
    const int32_t *offset = x->offset + t0 * blocks;
    vw sum[PACKED_WIDE];
    for (size_t t = 0; t < PACKED_WIDE; t++) {
        prefetch_write(y + (t0 + t) * y_stride);
        sum[t] = vw_zero();
    }
    for (size_t b = 0; b < blocks; b++, w += size, q += HK_BLOCK, ahead += 2 * size) {
        if (t0 == 0) prefetch_lines(ahead, 2 * size);
        __m512i dot[PACKED_WIDE];
        for (size_t t = 0; t < PACKED_WIDE; t++) {
            const __m256i missing = packed_missing(type, offset[t * blocks + b]);
            dot[t] = _mm512_broadcastd_epi32(_mm256_castsi256_si128(missing));
        }
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            const size_t c = i / 2 + i % 2 * 4;
            const __m512i v = wide_weights(type, w, w + group, c);
            for (size_t t = 0; t < PACKED_WIDE; t++) {
                int32_t four;
                memcpy(&four, q + t * cols + 4 * c, sizeof four);
                dot[t] = HK_DPBUSD_WIDE(dot[t], v, _mm512_set1_epi32(four));
                OPAQUE(dot[t]);
            }
        }
        const vw scale = vw_pair(load_scales(type, w), load_scales(type, w + group));
        for (size_t t = 0; t < PACKED_WIDE; t++) {
            const size_t at = t * blocks + b;
            sum[t] = vw_fma(_mm512_cvtepi32_ps(dot[t]), vw_mul(scale, vw_set1(d[at])), sum[t]);
            if (has_min(type)) {
                const size_t min = HK_LANES * scale_bytes(type);
                const vw mins = vw_pair(vf_load_f16(w + min), vf_load_f16(w + group + min));
                sum[t] = vw_fma(mins, vw_set1(act_sum(d[at], offset[at])), sum[t]);
            }
        }
    }
    for (size_t t = 0; t < PACKED_WIDE; t++) {
        float *out = y + (t0 + t) * y_stride;
        const __mmask16 there = (__mmask16)((1u << (HK_LANES + lanes)) - 1);
        if (accumulate) sum[t] = vw_add(_mm512_maskz_loadu_ps(there, out), sum[t]);
        _mm512_mask_storeu_ps(out, there, sum[t]);
    }
}

#endif

/* tokens from .. to; `groups` is constant in each call, and so are the tokens of a tile */
HK_INLINE void packed_groups(hk_type type, const uint8_t *w, size_t groups, size_t lanes, size_t cols, const hk_act *x,
                             size_t from, size_t to, float *y, size_t y_stride, int accumulate) {
    const uint8_t *at[PACKED_MOST] = {w, w + (groups - 1) * (cols / HK_BLOCK * type_bytes(type))};
    float *out[PACKED_MOST] = {y, y + (groups - 1) * HK_LANES};
#define PACKED_TILE(n) packed_tile(type, at, groups, lanes, cols, 0, x, t, n, out, y_stride, accumulate)
    size_t t = from;
#ifdef HK_DPBUSD_WIDE
    if (groups == PACKED_GROUPS)
        for (; t + PACKED_WIDE <= to; t += PACKED_WIDE) wide_tile(type, w, lanes, cols, x, t, y, y_stride, accumulate);
#endif
    for (; t + PACKED_TOKENS <= to; t += PACKED_TOKENS) PACKED_TILE(PACKED_TOKENS);
    switch (to - t) {
    case 5: PACKED_TILE(5 < PACKED_TOKENS ? 5 : 1); break; /* where five are a whole tile, none are left here */
    case 4: PACKED_TILE(4); break;
    case 3: PACKED_TILE(3); break;
    case 2: PACKED_TILE(2); break;
    case 1: PACKED_TILE(1); break;
    }
#undef PACKED_TILE
}

_Static_assert(PACKED_WHOLE % PACKED_TOKENS == 0, "a batch is of whole tiles");
#ifdef HK_DPBUSD_WIDE
_Static_assert(PACKED_WHOLE % PACKED_WIDE == 0, "a batch is of whole tiles");
#endif

/* Tokens whose activations stay in the second-level cache while they meet all rows of a call: whole tiles. */
HK_INLINE size_t packed_batch(size_t cols) {
    const size_t tokens = PACKED_NEAR / cols / PACKED_WHOLE * PACKED_WHOLE;
    return tokens > PACKED_WHOLE ? tokens : PACKED_WHOLE;
}

HK_INLINE void packed_matmul(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t tokens,
                             float *y, size_t y_stride, int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type), batch = packed_batch(cols);
    for (size_t from = 0, to; from < tokens; from = to) {
        to = tokens - from > batch ? from + batch : tokens;
        for (size_t row = 0, step; row < rows; row += step) {
            const size_t left = rows - row, groups = left > HK_LANES && tokens > 1 ? PACKED_GROUPS : 1;
            step = left < groups * HK_LANES ? left : groups * HK_LANES;
            const size_t lanes = step - (groups - 1) * HK_LANES;
            const uint8_t *here = w + row / HK_LANES * group;
            if (groups == 1)
                packed_groups(type, here, 1, lanes, cols, x, from, to, y + row, y_stride, accumulate);
            else
                packed_groups(type, here, PACKED_GROUPS, lanes, cols, x, from, to, y + row, y_stride, accumulate);
        }
    }
}

HK_INLINE void packed_matvec(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t ahead,
                             const hk_act *x, float *const y[HK_STREAMS], int accumulate) {
    const size_t group = cols / HK_BLOCK * type_bytes(type);
    for (size_t row = 0; row < rows; row += HK_LANES) {
        const uint8_t *at[HK_STREAMS];
        float *out[HK_STREAMS];
        for (size_t i = 0; i < HK_STREAMS; i++)
            at[i] = (const uint8_t *)w[i] + row / HK_LANES * group, out[i] = y[i] + row;
        packed_tile(type, at, HK_STREAMS, HK_LANES, cols, ahead, x, 0, 1, out, 0, accumulate);
    }
}

static void matvec(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t ahead, const hk_act *x,
                   float *const y[HK_STREAMS], int accumulate) {
#define AS(product, type) case type: product(type, w, rows, cols, ahead, x, y, accumulate); break;
    switch (type) { /* constants, so that each type has code of its own */
        AS(float_matvec, HK_F32)
        AS(float_matvec, HK_F16)
        AS(float_matvec, HK_BF16)
        EACH_PACKED(AS, packed_matvec)
    default: break; /* blocks row after row: arithmetic, not memory, is their limit */
    }
#undef AS
}

#define HK_MATVEC matvec
