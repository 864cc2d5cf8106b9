/* Products with quantized matrices in ggml's order: eight rows at a time, summed in the order of packed matrices.
 *
 * Requires: quant_x86-inl.h; HK_DPBUSD if the table has it. */
#ifndef HYMBA_BLOCK_X86_INL_H
#define HYMBA_BLOCK_X86_INL_H

#define BLOCK_TOKENS 4 /* of a tile */

/* 16 in the bytes whose bit of the 32 is set */
HK_INLINE __m256i block_fifth(const uint8_t *bits) {
    int32_t word;
    memcpy(&word, bits, sizeof word);
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), order), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16));
}

/* the 32 weights of a block as signed bytes, before scale and minimum */
HK_INLINE __m256i block_values(hk_type type, const uint8_t *block) {
    const uint8_t *head = block + scale_bytes(type) + (has_min(type) ? 2 : 0);
    if (code_bits(type) == 8) return _mm256_loadu_si256((const __m256i *)head);
    const __m128i nibbles = _mm_loadu_si128((const __m128i *)(head + (has_fifth(type) ? 4 : 0)));
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles);
    __m256i codes = _mm256_and_si256(both, _mm256_set1_epi8(15));
    if (type_levels(type)) return _mm256_shuffle_epi8(table16(type_levels(type)), codes);
    if (has_fifth(type)) codes = _mm256_or_si256(codes, block_fifth(head));
    return zero_point(type) ? _mm256_sub_epi8(codes, _mm256_set1_epi8((char)zero_point(type))) : codes;
}

/* Sums of four adjacent products. maddubs needs one unsigned operand: |w|, with w's sign moved to the activation.
 * |w| is at most 128 and |a| at most 127, so a pair (2 * 128 * 127) fits 16 bits. */
HK_INLINE __m256i dot_quads(__m256i w, __m256i w_abs, const int8_t *q) {
    const __m256i a = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)q), w);
#ifdef HK_DPBUSD
    return HK_DPBUSD(_mm256_setzero_si256(), w_abs, a);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w_abs, a), _mm256_set1_epi16(1));
#endif
}

/* the sum of the lanes of each of eight */
HK_INLINE __m256i whole_sums(const __m256i x[8]) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* up to eight rows, one per lane; unused lanes repeat the last */
HK_INLINE void block_tile(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t t0,
                          size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    vf sum[BLOCK_TOKENS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = 0; b < blocks; b++) {
        __m256i quads[BLOCK_TOKENS][8];
        uint8_t scales[16];
        uint16_t mins[8];
        for (size_t r = 0; r < 8; r++) {
            const uint8_t *block = w + ((r < rows ? r : rows - 1) * blocks + b) * size;
            const __m256i values = block_values(type, block), values_abs = _mm256_abs_epi8(values);
            memcpy(scales + r * scale_bytes(type), block, scale_bytes(type));
            if (has_min(type)) mins[r] = load_u16(block + 2);
            for (size_t t = 0; t < tokens; t++)
                quads[t][r] = dot_quads(values, values_abs, x->q + (t0 + t) * cols + b * HK_BLOCK);
        }
        const vf scale = load_scales(type, scales);
        for (size_t t = 0; t < tokens; t++) {
            const size_t at = (t0 + t) * blocks + b;
            sum[t] = vf_fma(_mm256_cvtepi32_ps(whole_sums(quads[t])), vf_mul(scale, vf_set1(x->d[at])), sum[t]);
            if (has_min(type)) sum[t] = vf_fma(vf_load_f16(mins), vf_set1(act_sum(x->d[at], x->offset[at])), sum[t]);
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        float *out = y + (t0 + t) * y_stride;
        if (accumulate) sum[t] = vf_add(vf_load_n(out, rows), sum[t]);
        vf_store_n(out, rows, sum[t]);
    }
}

#endif
