/* packed_x86-inl.h for two groups of rows in a 512-bit register, with the same sums.
 *
 * Requires: packed_x86-inl.h; HK_DPBUSD_WIDE, and HK_LOOKUP64 if the table has it. */
#ifndef HYMBA_PACKED_X86_512_INL_H
#define HYMBA_PACKED_X86_512_INL_H

#define WIDE_SUMS 12 /* maximum number of tokens per tile */

HK_INLINE __m512i wide_pair(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

HK_INLINE __m512i wide_load(const uint8_t *a, const uint8_t *b) {
    return wide_pair(_mm256_loadu_si256((const __m256i *)a), _mm256_loadu_si256((const __m256i *)b));
}

HK_INLINE __m512i wide_lookup(hk_type type, const int8_t *levels, __m512i low) {
    const __m512i table = wide_pair(packed_table(type, levels), packed_table(type, levels));
#ifdef HK_LOOKUP64
    return HK_LOOKUP64(low, table); /* six bits, in a table that is repeated four times */
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(low, _mm512_set1_epi8(15)));
#endif
}

/* `packed_weights` for two groups */
HK_INLINE __m512i wide_weights(hk_type type, const uint8_t *a, const uint8_t *b, size_t c) {
    const size_t head = HK_LANES * head_bytes(type), at = head + 32 * (code_bits(type) == 8 ? c : c % 4);
    const __m512i both = wide_load(a + at, b + at);
    if (code_bits(type) == 8) return _mm512_xor_si512(both, _mm512_set1_epi8(-128));
    const __m512i low = c < 4 ? both : _mm512_srli_epi16(both, 4);
    if (type_levels(type)) return wide_lookup(type, type_levels(type), low);
    const __m512i codes = _mm512_and_si512(low, _mm512_set1_epi8(15));
    if (!has_fifth(type)) return codes;
    const __m512i bits = wide_load(a + head - 4 * HK_LANES, b + head - 4 * HK_LANES);
    const __m512i fifth =
        c < 4 ? _mm512_slli_epi16(bits, 4 - (unsigned)c % 4) : _mm512_srli_epi16(bits, (unsigned)c % 4);
    return _mm512_or_si512(codes, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
}

/* `block_dot` of pairs of groups, whose blocks are at w[2p] and w[2p + 1]. */
HK_INLINE void wide_block_dot(hk_type type, const uint8_t *const w[], size_t pairs, block_acts x, size_t tokens,
                              vw sum[][WIDE_SUMS], size_t t0) {
    __m512i dot[HK_STREAMS / 2][WIDE_SUMS];
    for (size_t t = 0; t < tokens; t++) {
        const __m256i correction = zero_point_correction(type, x.offset[t * x.stride]);
        for (size_t p = 0; p < pairs; p++) dot[p][t] = _mm512_broadcastd_epi32(_mm256_castsi256_si128(correction));
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        const size_t c = i / 2 + i % 2 * 4;
        __m512i v[HK_STREAMS / 2];
        for (size_t p = 0; p < pairs; p++) v[p] = wide_weights(type, w[2 * p], w[2 * p + 1], c);
        for (size_t t = 0; t < tokens; t++) {
            __m512i a = _mm512_set1_epi32(four_columns(&x, t, c));
            if (pairs > 1) OPT_BARRIER(a); /* loaded once; with a single pair it is a memory operand */
            for (size_t p = 0; p < pairs; p++) {
                dot[p][t] = HK_DPBUSD_WIDE(dot[p][t], v[p], a);
                OPT_BARRIER(dot[p][t]);
            }
        }
    }
    for (size_t p = 0; p < pairs; p++) {
        const vw scale = vw_pair(load_scales(type, w[2 * p]), load_scales(type, w[2 * p + 1]));
        for (size_t t = 0; t < tokens; t++) {
            const float d = x.d[t * x.stride];
            vw *to = &sum[p][t0 + t];
            *to = vw_fma(_mm512_cvtepi32_ps(dot[p][t]), vw_mul(scale, vw_set1(d)), *to);
            if (has_min(type)) {
                const size_t min = HK_LANES * scale_bytes(type);
                const vw mins = vw_pair(vf_load_f16(w[2 * p] + min), vf_load_f16(w[2 * p + 1] + min));
                *to = vw_fma(mins, vw_set1(act_sum(d, x.offset[t * x.stride])), *to);
            }
        }
    }
}

#endif
