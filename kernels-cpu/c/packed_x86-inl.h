/* Blocks of eight interleaved rows: one row per lane, so there are no horizontal sums and one load gets eight scales.
 * Four columns of activations are broadcast to all rows. Each pair of row and token is summed block by block in the
 * same order, regardless of the tile.
 *
 * Requires: simd_avx2.h, types.h, quant_x86-inl.h; HK_DPBUSD and HK_LOOKUP32 if the table has them. */
#ifndef HYMBA_PACKED_X86_INL_H
#define HYMBA_PACKED_X86_INL_H

#define TILE_SUMS 8 /* maximum number of tokens per tile */

/* Whether the kernels process the type's weights as signed bytes (they do not fit otherwise); if not, the zero point
 * is added. */
HK_INLINE int packed_signed(hk_type type) {
#ifdef HK_DPBUSD
    (void)type;
    return 0; /* dpbusd needs unsigned weights */
#else
    return zero_point(type) == 128;
#endif
}

HK_INLINE int packed_zero_point(hk_type type) { return packed_signed(type) ? 0 : zero_point(type); }

/* a table of 16 signed levels, in the form that the kernels use */
HK_INLINE __m256i packed_table(hk_type type, const int8_t *levels) {
    return _mm256_add_epi8(table16(levels), _mm256_set1_epi8((char)packed_zero_point(type)));
}

/* looks up the low four bits of each byte in a table that is duplicated in both halves */
HK_INLINE __m256i packed_lookup(__m256i table, __m256i low) {
#ifdef HK_LOOKUP32
    return HK_LOOKUP32(low, table); /* five bits */
#else
    return _mm256_shuffle_epi8(table, _mm256_and_si256(low, _mm256_set1_epi8(15)));
#endif
}

/* the weights of columns 4c .. 4c+3 */
HK_INLINE __m256i packed_weights(hk_type type, const uint8_t *block, size_t c) {
    const uint8_t *chunks = block + HK_LANES * head_bytes(type);
    if (code_bits(type) == 8) {
        const __m256i w = _mm256_loadu_si256((const __m256i *)(chunks + 32 * c));
        return packed_signed(type) ? w : _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    }
    const __m256i both = _mm256_loadu_si256((const __m256i *)(chunks + 32 * (c % 4)));
    const __m256i low = c < 4 ? both : _mm256_srli_epi16(both, 4); /* four bits of each byte */
    if (type_levels(type)) return packed_lookup(packed_table(type, type_levels(type)), low);
    const __m256i codes = _mm256_and_si256(low, _mm256_set1_epi8(15));
    if (!has_fifth(type)) return codes;
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(chunks - 4 * HK_LANES));
    const __m256i fifth = c < 4 ? _mm256_slli_epi16(bits, 4 - (int)c % 4) : _mm256_srli_epi16(bits, (int)c % 4);
    return _mm256_or_si256(codes, _mm256_and_si256(fifth, _mm256_set1_epi8(16)));
}

/* The sum of a block's products for each row: begin, eight steps, end. `offset`: the correction for zero point 8. */

HK_INLINE __m256i zero_point_correction(hk_type type, int32_t offset) { /* for every row */
    switch (packed_zero_point(type)) {
    case 0: return _mm256_setzero_si256();
    case 12: return _mm256_set1_epi32(offset + offset / 2); /* offset is even */
    default: return _mm256_set1_epi32(offset * (packed_zero_point(type) / 8));
    }
}

#ifdef HK_DPBUSD

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) { return zero_point_correction(type, offset); }

HK_INLINE __m256i packed_step(hk_type type, __m256i sum, __m256i w, __m256i a) {
    (void)type;
    return HK_DPBUSD(sum, w, a);
}

HK_INLINE __m256i packed_end(hk_type type, __m256i sum, int32_t offset) {
    (void)type, (void)offset;
    return sum;
}

#else

/* Whether eight pairs of products fit 16 bits: those of 4-bit codes are below 8 * 2 * 15 * 127 < 2^15. */
HK_INLINE int packed_narrow(hk_type type) { return code_bits(type) == 4 && !has_fifth(type) && !type_levels(type); }

HK_INLINE __m256i packed_begin(hk_type type, int32_t offset) {
    return packed_narrow(type) ? _mm256_setzero_si256() : zero_point_correction(type, offset);
}

HK_INLINE __m256i packed_step(hk_type type, __m256i sum, __m256i w, __m256i a) {
    if (packed_narrow(type)) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
    const __m256i pairs = packed_signed(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
                                              : _mm256_maddubs_epi16(w, a);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

HK_INLINE __m256i packed_end(hk_type type, __m256i sum, int32_t offset) {
    if (!packed_narrow(type)) return sum;
    return _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), zero_point_correction(type, offset));
}

#endif

/* The activations of a block of 32 columns: columns 4c .. 4c+3 of token t are at q + t * token + c * column, its scale
 * and offset at t * stride. */
typedef struct block_acts {
    const int8_t *q;
    const float *d;
    const int32_t *offset;
    size_t token, column, stride;
} block_acts;

/* The first block of tokens t0 .. of a matrix [tokens, cols]. */
HK_INLINE block_acts acts_by_token(const hk_act *x, size_t cols, size_t t0) {
    const size_t blocks = cols / HK_BLOCK;
    return (block_acts){x->q + t0 * cols, x->d + t0 * blocks, x->offset + t0 * blocks, cols, 4, blocks};
}

/* The first block of `tokens` interleaved tokens. */
HK_INLINE block_acts acts_interleaved(const hk_act *x, size_t tokens) {
    return (block_acts){x->q, x->d, x->offset, 4, 4 * tokens, 1};
}

/* The tokens from t on. */
HK_INLINE block_acts acts_from(block_acts x, size_t t) {
    x.q += t * x.token, x.d += t * x.stride, x.offset += t * x.stride;
    return x;
}

HK_INLINE int32_t four_columns(const block_acts *x, size_t t, size_t c) {
    int32_t four;
    memcpy(&four, x->q + t * x->token + c * x->column, sizeof four);
    return four;
}

/* Adds the products of a block of some groups of rows with some tokens to sums `t0` ..: both counts are constant in
 * each call. */
HK_INLINE void block_dot(hk_type type, const uint8_t *const w[], size_t groups, block_acts x, size_t tokens,
                         vf sum[][TILE_SUMS], size_t t0) {
    __m256i dot[HK_STREAMS][TILE_SUMS];
    for (size_t t = 0; t < tokens; t++)
        for (size_t g = 0; g < groups; g++) dot[g][t] = packed_begin(type, x.offset[t * x.stride]);
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        const size_t c = i / 2 + i % 2 * 4; /* the two columns of a byte's nibbles, one after the other */
        __m256i v[HK_STREAMS];
        for (size_t g = 0; g < groups; g++) v[g] = packed_weights(type, w[g], c);
        for (size_t t = 0; t < tokens; t++) {
            const __m256i a = _mm256_set1_epi32(four_columns(&x, t, c));
            for (size_t g = 0; g < groups; g++) {
                dot[g][t] = packed_step(type, dot[g][t], v[g], a);
                OPT_BARRIER(dot[g][t]); /* keeps the order of sums, which otherwise exceed the registers */
            }
        }
    }
    for (size_t g = 0; g < groups; g++) {
        const vf scale = load_scales(type, w[g]);
        for (size_t t = 0; t < tokens; t++) {
            const float d = x.d[t * x.stride];
            const int32_t offset = x.offset[t * x.stride];
            const vf whole = _mm256_cvtepi32_ps(packed_end(type, dot[g][t], offset));
            vf *to = &sum[g][t0 + t];
            *to = vf_fma(whole, vf_mul(scale, vf_set1(d)), *to);
            if (has_min(type))
                *to = vf_fma(vf_load_f16(w[g] + HK_LANES * scale_bytes(type)), vf_set1(act_sum(d, offset)), *to);
        }
    }
}

/* y = or += sum, `lanes` values of it */
HK_INLINE void put_sums(float *y, size_t lanes, vf sum, int accumulate) {
    if (lanes < HK_LANES) {
        if (accumulate) sum = vf_add(vf_load_n(y, lanes), sum);
        vf_store_n(y, lanes, sum);
    } else {
        if (accumulate) sum = vf_add(vf_load(y), sum);
        vf_store(y, sum);
    }
}

#endif
