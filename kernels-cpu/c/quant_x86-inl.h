/* What all products with quantized matrices share: activations as int8 blocks, scales, tables.
 *
 * Requires: simd_avx2.h, types.h. */
#ifndef HYMBA_QUANT_X86_INL_H
#define HYMBA_QUANT_X86_INL_H

/* Magnitudes compare like their bits, and NaN is the largest: it is not lost, unlike in vf_max. */
HK_INLINE __m256i greater_bits(vf a, vf b) {
    return _mm256_max_epi32(_mm256_castps_si256(vf_abs(a)), _mm256_castps_si256(vf_abs(b)));
}
HK_INLINE float top_magnitude(const vf v[4]) {
    const __m256i all = _mm256_max_epi32(greater_bits(v[0], v[1]), greater_bits(v[2], v[3]));
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1))));
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int32_t *offset) {
    for (size_t b = 0; b < n / HK_BLOCK; b++, x += HK_BLOCK, q += HK_BLOCK) {
        const vf v[4] = {vf_load(x), vf_load(x + 8), vf_load(x + 16), vf_load(x + 24)};
        const float max = top_magnitude(v);
        d[b] = max / 127.0f;
        const vf inverse = vf_set1(max >= HK_TINY ? 127.0f / max : 0);
        __m256i i[4];
        for (int j = 0; j < 4; j++) i[j] = _mm256_cvtps_epi32(vf_mul(v[j], inverse));
        /* the packs work within 128-bit halves: restore the order of the quarters */
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(bytes, order));
        /* biased to unsigned for psadbw, the only instruction that adds bytes */
        const __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        offset[b] = -8 * (_mm_cvtsi128_si32(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))) - 128 * HK_BLOCK);
    }
}

/* a table of 16 bytes in both halves, for pshufb */
HK_INLINE __m256i table16(const int8_t *levels) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels));
}

/* eight consecutive scales */
HK_INLINE vf load_scales(hk_type type, const void *p) {
    if (scale_bytes(type) == 2) return vf_load_f16(p);
    /* half of 2^(e-127), whose exponent bits are e, except for e = 0: 2^-127 is subnormal */
    const __m256i e = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)), 23);
    return vf_mul(_mm256_castsi256_ps(_mm256_max_epi32(e, _mm256_set1_epi32(1 << 22))), vf_set1(0.5f));
}

#endif
